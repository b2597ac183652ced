"""Continue prompts with a language model: a published checkpoint's folder, or a trained run.

  moejax generate --model runs/lm_debug --prompt "def main(" --max-new-tokens 200
  moejax generate --model CHECKPOINT --prompt "Once" --temperature 0.8 --top-p 0.9 --seed 1
  moejax generate --model CHECKPOINT --prompt "One" --prompt "Two" --json runs/texts.json

A single prompt's text is shown as it comes; several prompts are continued together, as a batch.
Without a tokenizer.json in the folder, text is UTF-8 bytes.
"""

import argparse
import sys
from pathlib import Path

HELP = "continue prompts with a language model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="published checkpoint, or workdir")
    add("--prompt", action="append", default=[], metavar="TEXT", help="may be given several times")
    add("--prompt-file", metavar="FILE", help="a prompt: the text of a file, or - for stdin")
    add(
        "--max-new-tokens", type=int, default=128, metavar="N", help="at most so many (%(default)s)"
    )
    add("--temperature", type=float, default=0.0, help="0: the best token each time (default)")
    add("--top-k", type=int, default=0, metavar="K", help="draw from the K best tokens")
    add("--top-p", type=float, default=1.0, metavar="P", help="draw from the best P of probability")
    add("--min-p", type=float, default=0.0, metavar="P", help="at least P times the best's")
    add("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1: repeat less")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text")
    add("--seed", type=int, default=0, help="of what is drawn (%(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), help="of a checkpoint's weights; as stored")
    add("--json", metavar="FILE", help="write texts, tokens, settings and speed")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from moejax.generation.generate import GenerationConfig
    from train.generate import continue_prompts, load_model, write_json

    prompts = _prompts(args)
    config = GenerationConfig(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
    )
    console = Console(stderr=True)
    if config.greedy and (args.top_k or args.top_p != 1 or args.min_p):
        console.print("note: at temperature 0, --top-k, --top-p and --min-p change nothing")
    with console.status("loading"):
        model = load_model(args.model, args.dtype)
    single = len(prompts) == 1
    if single:
        _write(prompts[0])
    results, speed = continue_prompts(
        model,
        prompts,
        config,
        stop=args.stop,
        show=(lambda new: _write(new[0])) if single else None,
    )
    if single:
        _write("\n")
    else:
        for one in results:
            _write(f"{one.prompt}{one.text}\n\n")
    console.print(speed.describe(), highlight=False, soft_wrap=True)
    if args.json:
        write_json(args.json, results, config, speed)
        console.print(f"Written: {args.json}", soft_wrap=True)
    return 0


def _prompts(args: argparse.Namespace) -> list[str]:
    prompts = list(args.prompt)
    if args.prompt_file == "-":
        prompts.append(sys.stdin.read())
    elif args.prompt_file:
        try:
            prompts.append(Path(args.prompt_file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--prompt-file {args.prompt_file} cannot be read: {error}") from error
    if not prompts:
        raise ValueError("there is no prompt; give --prompt TEXT or --prompt-file FILE")
    if "" in prompts:
        raise ValueError("a prompt is empty; give at least one character")
    return prompts


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
