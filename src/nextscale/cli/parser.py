"""What can be typed: commands and their options."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence

from nextscale.cli.arguments import Parser
from nextscale.cli.bench_options import add_bench_options
from nextscale.cli.edit_options import add_edit_options, add_reproduce_options
from nextscale.cli.export_options import add_export_options
from nextscale.cli.integrity_options import (
    add_approve_options,
    add_explain_options,
    add_replay_options,
    add_sign_options,
    add_verify_options,
    add_verify_with,
)
from nextscale.cli.publish_options import add_publish_options
from nextscale.cli.sample_options import add_sample_options, add_sampling_options
from nextscale.cli.scoring_options import (
    add_evaluate_options,
    add_likelihood_options,
    add_neighbours_options,
    add_statistics_options,
)
from nextscale.cli.serve_options import add_serve_options
from nextscale.cli.study_options import add_study_options
from nextscale.cli.tokenize_options import add_tokenize_options

#: A command: its exit code, or nothing when all went well.
Run = Callable[[argparse.Namespace, Sequence[str]], int | None]
#: Adds a command: its name, what it does in a sentence, and the module of this package that runs it.
AddCommand = Callable[[str, str, str], Parser]


def _lazily(module: str, function: str = "run") -> Run:
    """A command's function, imported only when the command runs."""

    def run(options: argparse.Namespace, rest: Sequence[str]) -> int | None:
        code: int | None = getattr(importlib.import_module(f"nextscale.cli.{module}"), function)(
            options, rest
        )
        return code

    return run


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(
        prog="nextscale", allow_abbrev=False,
        description="Train, sample and reconstruct with image generators that work by next-scale prediction.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def add(name: str, text: str, module: str) -> Parser:
        command: Parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=_lazily(module))
        return command

    for add_command in (
        _add_demo, _add_data, _add_train, _add_tokenize, _add_sample, _add_edit, _add_reproduce,
        _add_reconstruct, _add_convert, _add_export, _add_publish, _add_evaluate, _add_statistics,
        _add_likelihood, _add_neighbours, _add_scaling, _add_compare, _add_bench, _add_serve,
        _add_sign, _add_verify, _add_replay, _add_approve, _add_explain,
    ):  # fmt: skip
        add_command(add)
    return parser


def _add_demo(add: AddCommand) -> None:
    demo = add("demo", "Make a page of pictures with the bundled model.", "demo")
    demo.add_argument("--out", default="demo", help="folder to write (default: demo)")
    demo.add_argument("--model", default="cifar10-tiny", help="bundled model or model folder")
    demo.add_argument("--device", help="cpu, cuda, ... (default: a GPU when there is one)")


def _add_data(add: AddCommand) -> None:
    data = add("data", "Look at images before training on them.", "data")
    actions = data.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=Parser, help="what to do"
    )
    check: Parser = actions.add_parser(
        "check", help="read every image: classes, sizes, unreadable files, duplicates", allow_abbrev=False,
        description="Read every image of a source and say what is in it: classes, sizes, modes, unreadable "
        "files by name, exact duplicates.",
        epilog="The exit code is 0 when every image can be read, 1 when some cannot, 2 for a source or an "
        "option that cannot be used.",
    )  # fmt: skip
    check.add_argument(
        "source", help="folder of images, .zip, .tar or .parquet files, pattern of them, or hf:owner/name"
    )
    check.add_argument("--out", help="folder for report.json and sheet.png, a few images of each class")


def _add_train(add: AddCommand) -> None:
    train = add("train", "Train a tokenizer, prior, decoder or classifier; run again to go on.", "train")
    train.add_argument("stage", choices=["tokenizer", "prior", "decoder", "classifier"], help="what to train")
    train.add_argument("recipe", help="name of a recipe, or a .toml file")
    train.add_argument("--out", help="folder of the run (default: runs/RECIPE-STAGE)")
    train.add_argument("--device", help="cpu, cuda, ... (default: a GPU when there is one)")
    train.add_argument(
        "--settings", action="store_true", help="list all settings with their values, and stop"
    )
    train.add_argument(
        "--dry-run", action="store_true",
        help="list all settings, take a few steps in memory, say what the run will take, and stop",
    )  # fmt: skip
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    train.add_argument("--policy", help="file that says whose approval the run needs (ledger.policy)")
    train.add_argument("--approval", help="file of nextscale approve (ledger.approval)")
    train.add_argument(
        "--audit-every", type=int, metavar="N",
        help="have a fresh process take every N-th step again and compare (ledger.audit_every)",
    )  # fmt: skip
    train.epilog = (
        "Every setting of the recipe can be given as --a.b.c VALUE, for example --data.source my-pictures."
    )


def _add_tokenize(add: AddCommand) -> None:
    add_tokenize_options(
        add("tokenize", "Keep the tokens of images for training priors; run again to go on.", "tokenize")
    )


def _add_sample(add: AddCommand) -> None:
    sample = add("sample", "Make images.", "sample")
    add_sample_options(sample)
    add_verify_with(sample)


def _add_edit(add: AddCommand) -> None:
    edit = add("edit", "Make a part of an image anew, its surroundings, a variation, or it larger.", "edit")
    add_edit_options(edit)
    add_verify_with(edit)
    add_sampling_options(edit)


def _add_reproduce(add: AddCommand) -> None:
    add_reproduce_options(
        add("reproduce", "Make a picture again from what its file says of itself.", "reproduce")
    )


def _add_reconstruct(add: AddCommand) -> None:
    reconstruct = add("reconstruct", "Encode and decode images; writes them side by side.", "reconstruct")
    reconstruct.add_argument("model", help="bundled model or model folder")
    reconstruct.add_argument("images", nargs="+", help="image files, or a source as for data check")
    reconstruct.add_argument(
        "--limit", type=int, default=32, help="images at most, spread over the source (default: 32)"
    )
    reconstruct.add_argument(
        "--out", default="reconstructions", help="new folder to write (default: reconstructions)"
    )
    reconstruct.add_argument("--device", help="cpu, cuda, ... (default: a GPU when there is one)")


def _add_export(add: AddCommand) -> None:
    add_export_options(add("export", "Write a model as programs that run without its Python code.", "export"))


def _add_publish(add: AddCommand) -> None:
    add_publish_options(
        add("publish", "Write a model with a card, to a folder or the Hugging Face hub.", "publish")
    )


def _add_convert(add: AddCommand) -> None:
    convert = add("convert", "Turn published VAR checkpoints into a model folder.", "convert")
    convert.add_argument("--tokenizer", required=True, help="the tokenizer's .pth, or a trainer's checkpoint")
    convert.add_argument("--prior", help="the transformer's .pth, or a trainer's checkpoint")
    convert.add_argument(
        "--patch-nums", type=int, nargs="+", help="sides of the scales, where the file lacks them"
    )
    convert.add_argument(
        "--num-heads", type=int, help="heads, for a transformer without unit queries and keys"
    )
    convert.add_argument(
        "--unit-codes", action="store_true", help="the tokenizer compares directions of codes"
    )
    convert.add_argument("--out", required=True, help="new model folder")


def _add_evaluate(add: AddCommand) -> None:
    evaluate = add(
        "evaluate", "Score a model or images, against a reference or by class agreement alone.", "evaluate"
    )
    add_evaluate_options(evaluate)
    add_sampling_options(evaluate)


def _add_statistics(add: AddCommand) -> None:
    statistics = add("statistics", "Keep the statistics of images to score against.", "statistics")
    add_statistics_options(statistics)


def _add_likelihood(add: AddCommand) -> None:
    likelihood = add(
        "likelihood", "Bits that a model needs for the tokens of images, and their classes.", "likelihood"
    )
    add_likelihood_options(likelihood)


def _add_neighbours(add: AddCommand) -> None:
    neighbours = add("neighbours", "Look for training images that a model repeats.", "neighbours")
    add_neighbours_options(neighbours)
    add_sampling_options(neighbours)


def _add_scaling(add: AddCommand) -> None:
    scaling = add(
        "scaling", "Train a ladder of sizes and fit how the loss falls; run again to go on.", "scaling"
    )
    add_study_options(
        scaling, "scaling.json and scaling.png", "--run.data.source my-pictures", part="depth2-width64"
    )


def _add_compare(add: AddCommand) -> None:
    compare = add(
        "compare", "Train families alike, score and time them, and report; run again to go on.", "compare"
    )
    add_study_options(compare, "report.html and report.json", "--data.source my-pictures", part="prior:NAME")


def _add_bench(add: AddCommand) -> None:
    bench = add("bench", "Time the work against the plain way of doing it, and against the machine.", "bench")
    add_bench_options(bench)


def _add_serve(add: AddCommand) -> None:
    serve = add("serve", "Answer requests for pictures over HTTP.", "serve")
    add_serve_options(serve)
    add_verify_with(serve)


def _add_sign(add: AddCommand) -> None:
    add_sign_options(add("sign", "Sign a model folder, so that others can see who made it.", "sign"))


def _add_replay(add: AddCommand) -> None:
    add_replay_options(
        add("replay", "Train a stretch of a run again and hold it against the ledger.", "replay")
    )


def _add_approve(add: AddCommand) -> None:
    add_approve_options(
        add("approve", "Sign what a training is going to do, for a policy that asks for it.", "approve")
    )


def _add_verify(add: AddCommand) -> None:
    add_verify_options(
        add("verify", "Hold a run against its ledger, or a model against its signature.", "verify")
    )


def _add_explain(add: AddCommand) -> None:
    add_explain_options(
        add(
            "explain", "From a picture or a model back to images, code and approvals it came from.", "explain"
        )
    )
