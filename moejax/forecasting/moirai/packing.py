"""Windows of series as the tokens of MOIRAI-MoE, numpy.

Letters: B rows, L steps of the window, H steps of the forecast, C targets, F covariates known
ahead, G covariates of the past, T tokens, P cells of a token, the largest patch. N patches of the
window and M of the forecast for each variate.

A window's tokens stand in this order: targets' past, targets' future, then the past and the future
of the covariates known ahead, then the covariates of the past; within each part variate by variate.
"""

from dataclasses import dataclass

import numpy as np

from moejax.models.moirai_moe import Tokens


@dataclass(frozen=True, kw_only=True)
class Window:
    """The last L steps of some series. All float32 or bool; missing values are filled already.

    target, observed [B, L, C]; pad [B, L], true: before the series began; ahead, ahead_observed
    [B, L + H, F]; past_only, past_only_observed [B, L, G].
    """

    target: np.ndarray
    observed: np.ndarray
    pad: np.ndarray
    ahead: np.ndarray | None = None
    ahead_observed: np.ndarray | None = None
    past_only: np.ndarray | None = None
    past_only_observed: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How many tokens a window has and where. `steps` L, `horizon` H, `patch`: steps of a token."""

    steps: int
    horizon: int
    patch: int
    targets: int
    ahead: int = 0
    past_only: int = 0

    @property
    def past(self) -> int:
        """N."""
        return -(-self.steps // self.patch)

    @property
    def future(self) -> int:
        """M."""
        return -(-self.horizon // self.patch)

    @property
    def first_future(self) -> int:
        """Index of the first target's first token of the forecast."""
        return self.targets * self.past


def layout_of(window: Window, horizon: int, patch: int) -> Layout:
    """The layout of a window."""
    _, steps, targets = window.target.shape
    return Layout(
        steps=steps,
        horizon=horizon,
        patch=patch,
        targets=targets,
        ahead=0 if window.ahead is None else window.ahead.shape[2],
        past_only=0 if window.past_only is None else window.past_only.shape[2],
    )


def pack(window: Window, horizon: int, *, patch: int, width: int) -> Tokens:
    """The tokens of a window and of its forecast, those with `prediction_mask` and zeros inside.

    `width` is P. A window that starts inside a patch gets steps of padding in front. As in the
    published code, a first patch without any step of the series is padding (sample 0) for the
    targets, but for the covariates only where the window itself has all of its steps.
    """
    layout = layout_of(window, horizon, patch)
    cut = _Cutter(layout, width)
    ids_BN, next_ids_BM = _time_ids(window.observed, layout)
    outside_BN = _pad_patches(window.pad, layout, fill=True)
    outside_covariate_BN = _pad_patches(window.pad, layout, fill=False)
    parts = [
        cut.past(window.target, window.observed, ids_BN, outside_BN),
        cut.future(*_nothing(window, horizon), next_ids_BM, predicted=True),
    ]
    if window.ahead is not None:
        assert window.ahead_observed is not None
        known, seen = window.ahead, window.ahead_observed
        steps = layout.steps
        parts += [
            cut.past(known[:, :steps], seen[:, :steps], ids_BN, outside_covariate_BN),
            cut.future(known[:, steps:], seen[:, steps:], next_ids_BM),
        ]
    if window.past_only is not None:
        assert window.past_only_observed is not None
        parts.append(
            cut.past(window.past_only, window.past_only_observed, ids_BN, outside_covariate_BN)
        )
    fields = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
    fields["variate_id"] = np.broadcast_to(_variates(layout), fields["time_id"].shape).copy()
    fields["patch_size"] = np.full_like(fields["time_id"], patch)
    return Tokens(**fields)


@dataclass(frozen=True)
class _Cutter:
    """Cuts steps into patches of one layout, filled up to P cells."""

    layout: Layout
    width: int

    def past(self, x_BLC, observed_BLC, ids_BN, outside_BN) -> dict[str, np.ndarray]:
        before = self.layout.past * self.layout.patch - self.layout.steps
        fields = self._cells(x_BLC, observed_BLC, (before, 0))
        variates = x_BLC.shape[2]
        return fields | {
            "time_id": np.tile(ids_BN, (1, variates)),
            "sample_id": np.tile((~outside_BN).astype(np.int32), (1, variates)),
            "prediction_mask": np.zeros((len(x_BLC), self.layout.past * variates), bool),
        }

    def future(self, x_BHC, observed_BHC, ids_BM, *, predicted=False) -> dict[str, np.ndarray]:
        behind = self.layout.future * self.layout.patch - self.layout.horizon
        fields = self._cells(x_BHC, observed_BHC, (0, behind))
        ids_BT = np.tile(ids_BM, (1, x_BHC.shape[2]))
        return fields | {
            "time_id": ids_BT,
            "sample_id": np.ones_like(ids_BT),
            "prediction_mask": np.full(ids_BT.shape, predicted),
        }

    def _cells(self, x, observed, spare: tuple[int, int]) -> dict[str, np.ndarray]:
        cut = {"target": x.astype(np.float32), "observed_mask": observed.astype(bool)}
        return {name: self._patches(values, spare) for name, values in cut.items()}

    def _patches(self, x_BSC: np.ndarray, spare: tuple[int, int]) -> np.ndarray:
        """[B, S, C] -> [B, C * S / patch, P], zeros where there is nothing."""
        patch = self.layout.patch
        x_BSC = np.pad(x_BSC, ((0, 0), spare, (0, 0)))
        rows, _, variates = x_BSC.shape
        x_BTp = x_BSC.transpose(0, 2, 1).reshape(rows, variates * (x_BSC.shape[1] // patch), patch)
        return np.pad(x_BTp, ((0, 0), (0, 0), (0, self.width - patch)))


def _nothing(window: Window, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Zeros in the place of the future, which counts as observed once it is written."""
    rows, _, targets = window.target.shape
    return np.zeros((rows, horizon, targets), np.float32), np.ones((rows, horizon, targets), bool)


def _pad_patches(pad_BL: np.ndarray, layout: Layout, *, fill: bool) -> np.ndarray:
    """Whether a patch [B, N] is padding alone; `fill`: what counts for steps in front of all."""
    before = layout.past * layout.patch - layout.steps
    pad_BS = np.pad(pad_BL, ((0, 0), (before, 0)), constant_values=fill)
    return pad_BS.reshape(len(pad_BS), layout.past, layout.patch).all(axis=2)


def _time_ids(observed_BLC: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """(time of each past patch [B, N], of each future patch [B, M]), int32.

    Time stands still at 0 until something of a target is observed.
    """
    seen_BL1 = observed_BLC.any(axis=2, keepdims=True)
    before = layout.past * layout.patch - layout.steps
    seen_BS = np.pad(seen_BL1[..., 0], ((0, 0), (before, 0)))
    seen_BN = seen_BS.reshape(len(seen_BS), layout.past, layout.patch).any(axis=2)
    begun_BN = np.maximum.accumulate(seen_BN, axis=1)
    ids_BN = np.maximum(np.cumsum(begun_BN, axis=1) - 1, 0).astype(np.int32)
    steps_M = np.arange(1, layout.future + 1, dtype=np.int32)
    return ids_BN, ids_BN.max(axis=1, keepdims=True) + steps_M[None]


def _variates(layout: Layout) -> np.ndarray:
    """The variate of each token [T], counted on from the targets to the covariates."""
    targets = np.arange(layout.targets)
    ahead = layout.targets + np.arange(layout.ahead)
    past_only = layout.targets + layout.ahead + np.arange(layout.past_only)
    parts = [(targets, layout.past), (targets, layout.future)]
    parts += [(ahead, layout.past), (ahead, layout.future), (past_only, layout.past)]
    return np.concatenate([np.repeat(*part) for part in parts]).astype(np.int32)
