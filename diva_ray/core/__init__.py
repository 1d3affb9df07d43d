"""Pure mathematics of the dataset derivative: torch, numpy, scipy; no ray, no files, no config.

NOTATION (Dukler et al., ICLR 2022, arXiv:2111.09785; letters are used in this package only)

| letter | meaning | shape |
|---|---|---|
| Z | features of the linearised network, with a leading 1 for the intercept | (n, p) |
| Y | targets: class codes (n,) of int64, or values | (n,) or (n, c) |
| alpha | sample weights, >= 0 | (n,) |
| v | validation weights, >= 0: how much a sample counts in the loss L | (n,) |
| Lambda | ridge penalty of every column, 0 on the intercept | (p,) |
| A = Z' D_alpha Z + diag(Lambda) = L L' | normal matrix, Cholesky factor | (p, p) |
| W = A^-1 Z' D_alpha Y | ridge solution | (p, c) |
| U = Z L'^-1 | whitened features: u_i . u_j = z_i' A^-1 z_j = K_ij | (n, p) |
| r_i = y_i - W' z_i | residual | (c,) |
| q_i = u_i . u_i, h_i = alpha_i q_i | leverage h | scalar |
| e_G = (I - Q_G D_G)^-1 r_G, Q_G = U_G U_G' | residual left out with its group; r / (1 - h) alone | (k, c) |
| f_i = y_i - e_i | left-out prediction (paper eq. 13) | (c,) |
| g_i = v_i dl/df(f_i, y_i) | loss gradient there | (c,) |
| t_G = (I - Q_G D_G)^-T g_G | adjoint of e; g / (1 - h) alone | (k, c) |
| M = sum z_i t_i', P = A^-1 M | adjoint of W | (p, c) |
| S = sum_G sym(Z_G' (D_G e_G) t_G' Z_G), Q = A^-1 S A^-1 | adjoint of A^-1 | (p, p) |
| d_j = r_j' P' z_j - (Q_G t_G)_j . e_j + z_j' Q z_j | dL/dalpha_j, the dataset derivative | scalar |
| J_i = o^-1/2 sum_m df_m/dw (x_i), Z = J R | a network's gradients; R: one random sign a row | (n, p), (p, k) |

L(alpha) = sum_i v_i l(f_i, y_i) (paper eq. 11 with v = 1).
"""
