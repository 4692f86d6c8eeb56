"""The metrics by name, and what they mean in words that every table and report share."""

MEANING = {
    "acc_forget": "accuracy on the forget set; gold's value is right",
    "acc_retain": "accuracy on the retain set; should stay",
    "acc_val": "accuracy on the validation set; should stay",
    "acc_test": "accuracy on the test set; should stay",
    "acc_test_forgotten": "accuracy on wholly forgotten classes; should fall",
    "mia": "forget samples that the attack calls members; follows confidence",
    "mia_test": "test samples that the same attack calls members",
    "mia_excess": "mia − mia_test; near 0 is right, both signs are failures",
    "mia_auc": "telling forget from test by entropy; 0.5 is right",
    "mia_auc_low": "… lower end of its 95 % interval",
    "mia_auc_high": "… upper end of its 95 % interval",
    "entropy_ks": "distance of the entropy distributions; 0 is right",
    "rf_jsd": "divergence from the original on unseen data; should fall",
    "rf_jsd_published": "as the published code computes it (tables show it × 10⁴)",
    "jsd": "divergence from gold on the forget set; see the floor",
    "jsd_published": "as the published code computes it (tables show it × 10⁴)",
    "avg_gap": "mean distance to gold, as published",
    "avg_gap_excess": "mean distance to gold with mia_excess; this decides",
}
KEYS = tuple(MEANING)
"""Every metric, in the order of tables."""

READING = {
    "residual": "the forget set is still recognised",
    "over-forgotten": "the forget set stands out the other way, which gives it away as well",
    "undecided": "the interval is too wide to tell; a larger forget or test set would",
    "indistinguishable": "forgotten and unseen samples look alike to the attack",
}
