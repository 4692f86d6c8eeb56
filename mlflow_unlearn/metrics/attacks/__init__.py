"""Membership attacks on forgotten samples, calibrated by models that never saw them: scores from outputs, no model.

Symbols: ``f_u`` the audited model, ``f_o`` the original, ``g_1 … g_K`` gold standards or other references that were not
trained on the samples, ``D_f`` forget set, ``D_t`` unseen set; ``p`` the softmax output of the label, ``m`` its log
odds, ``m = z_y − logsumexp_{j≠y} z_j = log p − log(1 − p)``.
"""
