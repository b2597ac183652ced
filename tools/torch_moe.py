"""The MoE layer in PyTorch with torch's grouped_mm, for comparison: needs torch and a Hopper GPU.

python tools/torch_moe.py SHAPE ... where a SHAPE is T,D,F,E,k

A hand-written layer in bfloat16: router, sort by expert, gather, two grouped products into a
SwiGLU, one back, weights, rows put back in order and summed. Prints a JSON line a shape and pass:
median milliseconds, by events.
"""

import json
import statistics
import sys

import torch
from torch.nn import functional

WARM_UP, REPEATS, INNER = 3, 9, 3
grouped_mm = getattr(functional, "grouped_mm", None) or torch._grouped_mm


def layer(x_TD, router, gate, up, down, top_k: int):
    """[T, D] -> [T, D]; gate and up [E, D, F], down [E, F, D]."""
    num_experts = gate.shape[0]
    probabilities = torch.softmax(x_TD.float() @ router, dim=-1)
    weight_Tk, index_Tk = torch.topk(probabilities, top_k, dim=-1)
    weight_Tk = weight_Tk / weight_Tk.sum(dim=-1, keepdim=True)
    order_A = torch.argsort(index_Tk.reshape(-1))
    ends_E = torch.bincount(index_Tk.reshape(-1), minlength=num_experts).cumsum(0).int()
    x_AD = x_TD[order_A // top_k]
    hidden = functional.silu(grouped_mm(x_AD, gate, offs=ends_E)) * grouped_mm(
        x_AD, up, offs=ends_E
    )
    y_AD = grouped_mm(hidden, down, offs=ends_E)
    y_AD = y_AD * weight_Tk.reshape(-1)[order_A, None].to(y_AD.dtype)
    back_A = torch.empty_like(order_A)
    back_A[order_A] = torch.arange(len(order_A), device=order_A.device)
    return y_AD[back_A].view(*index_Tk.shape, -1).sum(dim=1)


def milliseconds(function) -> float:
    """Median time of a call."""
    times = []
    for repeat in range(WARM_UP + REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(INNER):
            function()
        end.record()
        torch.cuda.synchronize()
        if repeat >= WARM_UP:
            times.append(start.elapsed_time(end) / INNER)
    return statistics.median(times)


def measure(tokens: int, width: int, hidden: int, experts: int, top_k: int) -> dict[str, float]:
    """Milliseconds of the forward pass alone and of forward and backward."""
    options = {"device": "cuda", "dtype": torch.bfloat16}
    x_TD = torch.randn(tokens, width, **options)
    router = torch.randn(width, experts, device="cuda") / width**0.5
    gate, up = (torch.randn(experts, width, hidden, **options) / width**0.5 for _ in range(2))
    down = torch.randn(experts, hidden, width, **options) / hidden**0.5
    cotangent = torch.randn(tokens, width, **options)
    inputs = [leaf.requires_grad_() for leaf in (x_TD, router, gate, up, down)]

    def forward():
        with torch.no_grad():
            layer(*inputs, top_k)

    def both():
        torch.autograd.grad(layer(*inputs, top_k), inputs, cotangent)

    return {"forward": milliseconds(forward), "both": milliseconds(both)}


def main() -> None:
    """Measure the shapes of the command line."""
    torch.manual_seed(0)
    versions = {"torch": torch.__version__, "device": torch.cuda.get_device_name()}
    for text in sys.argv[1:]:
        sizes = tuple(int(part) for part in text.split(","))
        print(json.dumps({"shape": text, **measure(*sizes), **versions}), flush=True)


if __name__ == "__main__":
    main()
