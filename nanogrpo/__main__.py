"""Fine-tune, learn a reward, improve (grpo, ppo), draw (plot), read curves (doctor), or all in one (demo)."""

import argparse
import os
import signal
import sys
from contextlib import suppress

from nanogrpo.errors import NanoGRPOError

# Everything else is imported inside, so that what goes wrong meanwhile is a line, too.
ABOUT = (
    "Fine-tune (sft), learn a reward (rm), improve (grpo, ppo), draw (plot), read a run's curves (doctor), "
    "or all at once (demo)."
)
DOCTOR = "read a run's curves, and say what looks wrong"
TOO_MUCH = ("allocate", "out of memory", "overflow", "too large")  # in PyTorch's own RuntimeErrors


def parser() -> argparse.ArgumentParser:
    """All commands and their options. An option that is not given leaves no trace; the command knows more."""
    from nanogrpo import commands, demo
    from nanogrpo.options import add_options

    top = argparse.ArgumentParser(
        prog="python -m nanogrpo", description=ABOUT, epilog=commands.ORDER, allow_abbrev=False
    )
    top.set_defaults(run=lambda args: top.print_help())
    add = top.add_subparsers(metavar="command", dest="command").add_parser
    for name, job in commands.COMMANDS.items():
        command = add(name, help=job.help, description=job.help, allow_abbrev=False)
        command.set_defaults(run=commands.train)
        group = command.add_argument_group("the run")
        add_folder_options(group, None, f"runs/{name}, with a task's name where it is not the usual one")
        add_options(group, job.options_class)
        add_options(command.add_argument_group(job.config_class.__name__), job.config_class)
    command = add("demo", help=demo.DEMO, description=demo.DEMO, allow_abbrev=False)
    command.set_defaults(run=demo.demo)
    add_folder_options(command, "runs/demo", "runs/demo")
    add_options(command, demo.DemoOptions)
    command = add("plot", help=demo.PLOT, description=demo.PLOT, allow_abbrev=False)
    command.set_defaults(run=demo.plot)
    command.add_argument("logs", nargs="+", metavar="log", help="a CSV log, or a run's folder")
    command.add_argument("--out", default="plot.png", help="the picture to write (default: plot.png)")
    add_options(command, demo.PlotOptions)
    command = add("doctor", help=DOCTOR, description=DOCTOR, allow_abbrev=False)
    command.set_defaults(run=doctor)
    said = "a run's folder, its metrics.csv, TRL's trainer_state.json, or a CSV with TRL's names"
    command.add_argument("runs", nargs="+", metavar="run", help=said)
    return top


def doctor(args: argparse.Namespace) -> None:
    """Report on each run that was named. The doctor is of a wing, and loaded by its own command alone."""
    from nanogrpo.teach.doctor import command

    command(args)


def add_folder_options(group: argparse._ActionsContainer, default: str | None, said: str) -> None:
    """Where a run goes, and what becomes of one that is there."""
    group.add_argument("--out", default=default, help=f"its folder (default: {said})")
    group.add_argument("--resume", action="store_true", help="go on with the run in --out")
    group.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")


def run(argv: list[str] | None) -> None:
    """Parse the arguments and run the command."""
    import torch

    top = parser()
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    args = top.parse_args(argv)
    if empty := [name for name, value in vars(args).items() if value == []]:
        sys.exit(f"error: --{empty[0]} needs a value; `--` is none")
    if getattr(args, "resume", False) and args.overwrite:
        sys.exit("error: --resume goes on with a run, --overwrite replaces it; give one of them")
    torch.set_num_threads(1)  # the models are so small that a second thread costs more than it brings
    args.run(args)


def drop_output() -> None:
    """Send nowhere what cannot be written: the interpreter would try again at its end, and complain."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):  # a stream without a file has nothing that waits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: list[str] | None = None) -> None:
    """Run a command; whatever a user can cause is one line, not a traceback."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # None, where it was closed before
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a folder's name need not fit the terminal
        setattr(sys, name, stream)
    try:
        try:
            run(argv)
        finally:
            sys.stdout.flush()
    except NanoGRPOError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stop:
        print(f"\nstopped{''.join(f'; {text}' for text in stop.args)}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has gone, as head does
        drop_output()
        sys.exit(1)
    except OSError as error:
        drop_output()
        where = f" {error.filename}" if error.filename else ""
        sys.exit(f"error:{where} {error.strerror or error}")
    except (MemoryError, OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error).lower() for word in TOO_MUCH):
            raise
        said = str(error).partition("\n")[0]
        sys.exit(f"error: the memory does not suffice for these options; make a batch smaller ({said})")


if __name__ == "__main__":
    # While the libraries are loaded, Ctrl-C ends the process at once: some of them swallow the exception.
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    main()
