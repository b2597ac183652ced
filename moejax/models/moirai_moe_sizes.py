"""Published sizes of MOIRAI-MoE."""

from moejax.models.moirai_moe import MoiraiMoEConfig

# 117,025,800 parameters, centroids not counted, 10,857,480 of them at work on a token
SMALL = MoiraiMoEConfig()
# 935,066,592 parameters, 85,720,032 of them at work on a token
BASE = MoiraiMoEConfig(d_model=768, d_ff=1024, num_layers=12)
SIZES = {"small": SMALL, "base": BASE}
