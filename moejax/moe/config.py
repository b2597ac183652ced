"""Settings of routing and capacity, checked when they are made."""

from dataclasses import dataclass
from typing import Literal

from moejax.checks import require_choice, require_positive

Strategy = Literal["greedy", "group_limited_greedy", "noaux_tc", "top_2", "expert_choice", "soft"]
Score = Literal["softmax", "sigmoid", "identity"]
FreeExpert = Literal["zero", "copy", "constant"]

STRATEGY_NAMES = ("greedy", "group_limited_greedy", "noaux_tc", "top_2", "expert_choice", "soft")
GROUPED = ("group_limited_greedy", "noaux_tc")
NON_CAUSAL = ("expert_choice", "soft")


@dataclass(frozen=True, kw_only=True)
class RoutingConfig:
    """How a token's experts and their weights are found.

    | published router   | settings beside num_experts and top_k                              |
    |--------------------|--------------------------------------------------------------------|
    | Mixtral, Qwen      | the defaults; normalise=False without norm_topk_prob               |
    | Switch             | top_k=1, normalise=False                                           |
    | GShard, NLLB       | strategy="top_2", second_expert=...                                |
    | DeepSeek-V2        | normalise=False; strategy="group_limited_greedy", num_groups=...   |
    | DeepSeek-V3        | strategy="noaux_tc", score="sigmoid", num_groups=..., scale=2.5    |
    | LongCat            | free_experts=("copy", ...), use_bias=True, normalise=False         |
    | expert choice      | strategy="expert_choice", allow_non_causal=True                    |
    | Soft MoE           | strategy="soft", slots_per_expert=..., allow_non_causal=True       |

    `normalise`: the chosen weights of a token sum to 1 before `scale` multiplies them (with the
    score "identity" by a softmax over the chosen). `use_bias`: a correction bias is added to the
    scores for the choice only, never to the weights. `free_experts` are outputs of the router
    behind the E real experts that cost no matmul and belong to no group: "zero" adds nothing,
    "copy" the token itself, "constant" a learned mix of the token and a learned vector. Jitter
    acts where a random key is given, that is in training: `input_jitter` multiplies what the
    router reads by U(1 - j, 1 + j), `logit_jitter` adds a normal of that deviation to the logits.
    """

    num_experts: int
    top_k: int = 2
    strategy: Strategy = "greedy"
    score: Score = "softmax"
    normalise: bool = True
    scale: float = 1.0
    use_bias: bool = False
    num_groups: int = 1
    top_groups: int = 1
    second_expert: Literal["all", "sampling", "random"] = "all"
    free_experts: tuple[FreeExpert, ...] = ()
    slots_per_expert: int = 1
    input_jitter: float = 0.0
    logit_jitter: float = 0.0
    allow_non_causal: bool = False

    def __post_init__(self):
        for name in ("num_experts", "top_k", "num_groups", "top_groups", "slots_per_expert"):
            require_positive(name, getattr(self, name))
        require_choice("strategy", self.strategy, STRATEGY_NAMES)
        require_choice("score", self.score, ("softmax", "sigmoid", "identity"))
        require_choice("second_expert", self.second_expert, ("all", "sampling", "random"))
        for kind in self.free_experts:
            require_choice("free_experts", kind, ("zero", "copy", "constant"))
        if self.top_k > self.num_outputs:
            raise ValueError(
                f"top_k is {self.top_k}; there are only {self.num_outputs} experts to choose from"
            )
        if not (0 <= self.input_jitter < 1 and self.logit_jitter >= 0):
            raise ValueError(
                f"input_jitter is {self.input_jitter} and logit_jitter {self.logit_jitter}; they"
                " must be >= 0, and input_jitter below 1"
            )
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale is {self.scale}; it must be a positive number")
        self._check_strategy()
        self._check_groups()

    def _check_strategy(self):
        if self.strategy in NON_CAUSAL and not self.allow_non_causal:
            raise ValueError(
                f"strategy {self.strategy!r} lets later tokens decide about earlier ones; set"
                " allow_non_causal=True where no token is predicted from the ones before it"
            )
        if self.strategy == "top_2" and self.top_k != 2:
            raise ValueError(f"top_k is {self.top_k}; strategy 'top_2' chooses exactly 2 experts")
        if self.strategy in ("top_2", *NON_CAUSAL) and (self.use_bias or self.free_experts):
            raise ValueError(
                f"strategy {self.strategy!r} takes neither use_bias nor free_experts; choose"
                " 'greedy', 'group_limited_greedy' or 'noaux_tc'"
            )
        if self.strategy in ("top_2", "soft") and self.score != "softmax":
            raise ValueError(f"strategy {self.strategy!r} scores by softmax, not {self.score!r}")

    def _check_groups(self):
        if self.strategy not in GROUPED:
            if self.num_groups != 1 or self.top_groups != 1:
                raise ValueError(
                    f"num_groups is {self.num_groups} and top_groups {self.top_groups}, but"
                    f" strategy {self.strategy!r} has no groups; choose one of {GROUPED}"
                )
            return
        if self.num_groups == 1:
            return
        if self.num_experts % self.num_groups:
            raise ValueError(
                f"num_groups is {self.num_groups}; it must divide the {self.num_experts} experts"
            )
        size = self.num_experts // self.num_groups
        if self.top_groups > self.num_groups:
            raise ValueError(
                f"top_groups is {self.top_groups}; there are only {self.num_groups} groups"
            )
        if self.strategy == "noaux_tc" and size < 2:
            raise ValueError(
                f"num_groups is {self.num_groups} for {self.num_experts} experts; 'noaux_tc' adds"
                " a group's two best scores, so a group needs at least 2 experts"
            )
        if self.top_k > self.top_groups * size + len(self.free_experts):
            raise ValueError(
                f"top_k is {self.top_k}, but {self.top_groups} groups of {size} experts hold only"
                f" {self.top_groups * size}; raise top_groups or lower top_k"
            )

    @property
    def num_outputs(self) -> int:
        """Experts that the router chooses from: the real ones and the free ones."""
        return self.num_experts + len(self.free_experts)

    @property
    def has_bias(self) -> bool:
        """Whether a correction bias takes part in the choice."""
        return self.use_bias or self.strategy == "noaux_tc"


@dataclass(frozen=True, kw_only=True)
class CapacityConfig:
    """How many tokens an expert takes from a group, and who comes first.

    C = ceil(factor * tokens * top_k / E), without top_k if not `counts_k`; then at least
    `minimum`, at most `maximum`, never more than the group has tokens. A group is the whole batch
    or one sequence; only the latter keeps a sequence's output independent of its neighbours.
    Order of the queues: "token_major" (a token's second choice before the next token's first),
    "choice_major" (all first choices before any second) or "priority" (choice-major, important
    tokens first). `renormalise`: the weights that a token keeps are divided by their sum;
    otherwise a dropped share is lost.
    """

    factor: float = 1.25
    minimum: int = 1
    maximum: int | None = None
    counts_k: bool = True
    scope: Literal["batch", "sequence"] = "batch"
    order: Literal["token_major", "choice_major", "priority"] = "choice_major"
    renormalise: bool = False

    def __post_init__(self):
        require_choice("scope", self.scope, ("batch", "sequence"))
        require_choice("order", self.order, ("token_major", "choice_major", "priority"))
        require_positive("minimum", self.minimum)
        if not 0 < self.factor < float("inf"):
            raise ValueError(
                f"factor is {self.factor}; a capacity of 0 serves no token: give a positive number,"
                " or no capacity at all to drop nothing"
            )
        if self.maximum is not None:
            require_positive("maximum", self.maximum)
            if self.maximum < self.minimum:
                raise ValueError(
                    f"maximum is {self.maximum}, below minimum, which is {self.minimum}"
                )
