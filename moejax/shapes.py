"""The axis glossary: what each letter of a shape or of a name such as `heads_BKPC` means.

Everywhere
    B   batch: windows, or sequences
    D   model width
    E   experts of a routed layer
    F   features of one step: calendar features, or the hidden width of an MLP
    I   input features of a linear map
    O   output features of a linear map
    T   tokens of a flattened batch

Forecasting (MoLE)
    S   steps of the input window, `seq_len`
    P   steps of the forecast, `pred_len`
    C   channels: the columns of a series
    K   experts of the mixture, `num_experts`; every expert answers for every window
    Q   rows of the experts' shared projection, `K * P`, expert-major: row `k * P + p`

Routing (the MoE layer)
    k   experts chosen by a token, `top_k`
    M   outputs of a router: E experts, then free ones
    G   groups of tokens that have places of their own
    S   tokens of a group, for example a sequence
    C   places of an expert for the tokens of a group, its capacity
    N   slots or sorted rows
    A   choices of all tokens, `T * k`
    H   hidden width of an expert

A digit is an axis of that size: `mean_B1C` is [B, 1, C]. A file that needs another letter says so
at its top.
"""
