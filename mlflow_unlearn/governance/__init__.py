"""From a measured version to a decision about it: evidence, policy, review, promotion, verification, retirement."""
