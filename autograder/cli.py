"""The commands, as `course.py` hands them over."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent

console = Console()


class CommandError(Exception):
    """Bad input or a missing thing: one clear line, exit status 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status."""
    top = parser()
    args, rest = top.parse_known_args(argv)
    if args.command == "test":
        args.arguments = rest
    elif rest:
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        console.print("\nStopped.")
        return 130
    except expected_errors() as error:
        print(f"course.py {args.command}: {error}", file=sys.stderr)
        return 2


def expected_errors() -> tuple[type[Exception], ...]:
    """What bad input leads to. Anything else is a defect of ours and shows its traceback."""
    errors: list[type[Exception]] = [CommandError]
    # Only modules that the command has loaded can have raised.
    for name, attribute in [
        ("autograder.building", "BuildError"),
        ("autograder.classroom", "NbgraderError"),
        ("autograder.book", "BookError"),
        ("autograder.grading", "GradingError"),
        ("autograder.engine", "EngineError"),
        ("autograder.recording", "RecordingError"),
        ("autograder.learning", "LearnError"),
        ("autograder.assembling", "AssembleError"),
    ]:
        module = sys.modules.get(name)
        if module is not None and hasattr(module, attribute):
            errors.append(getattr(module, attribute))
    return tuple(errors)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="course.py",
        description="Attention to Detail: build a complete transformer, piece by piece.",
        epilog="Start with `python3 course.py learn`.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, help: str, **kwargs) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, **kwargs)
        sub.set_defaults(run=run)
        return sub

    sub = command("learn", learn, "open the book and JupyterLab side by side")
    sub.add_argument("chapter", nargs="?", help="chapter to open, such as 4 or 04_self_attention")
    sub.add_argument("--no-browser", action="store_true", help="print the address only")
    sub.add_argument("--port", type=int, help="port to listen on (default: the next free one)")
    sub.add_argument("--submitted", type=Path, metavar="DIR", help="open formgrader on this class")

    sub = command("check", check, "check one chapter's notebook from the terminal")
    sub.add_argument("chapter", help="such as 4 or 04_self_attention")

    sub = command("grade", grade, "grade your notebooks, or a class's submissions")
    sub.add_argument("chapters", nargs="*", metavar="CHAPTER", help="only these (default: all)")
    sub.add_argument(
        "--submitted",
        type=Path,
        metavar="DIR",
        help="grade a class: DIR/<student>/<assignment>/<notebook>.ipynb",
    )
    sub.add_argument("--force", action="store_true", help="grade unchanged submissions again, too")
    many = sub.add_argument_group("with --submitted")
    many.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that grade (default: one for each core, where there is enough to do)",
    )
    many.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="grade on the workers of a running dask cluster, such as tcp://10.0.0.5:8786",
    )
    many.add_argument(
        "--db",
        metavar="URL",
        help="the gradebook (default: gradebook.db beside DIR); postgresql://user@host/name",
    )
    many.add_argument(
        "--unsafe-no-sandbox",
        action="store_true",
        help="run submissions with your rights: they can read your files and other submissions, "
        "give themselves points, and harm this machine",
    )

    command("progress", progress, "show what is done, what is next and how long it takes")

    sub = command("assemble", assemble, "build the package my_transformer/ from your own cells")
    sub.add_argument("--to", type=Path, metavar="DIR", help="folder (default: my_transformer)")

    sub = command("release", release, "rebuild exercises/ from the sources")
    sub.add_argument("chapters", nargs="*", metavar="CHAPTER", help="only these (default: all)")
    sub.add_argument(
        "--fresh",
        action="store_true",
        help="where you have edited a notebook, put a fresh copy beside it",
    )

    sub = command("book", book, "build the book")
    sub.add_argument("--force", action="store_true", help="build even if nothing has changed")

    sub = command("experiment", experiment, "list the experiments, or run one and record it")
    sub.add_argument("name", nargs="?", help="such as 04_scaling")

    sub = command("bench", bench, "list the benchmarks, or run one")
    sub.add_argument("name", nargs="?", help="such as checks")

    sub = command("test", test, "run every test")
    sub.add_argument(
        "--mine",
        action="store_true",
        help="test my_transformer/, assembled anew, instead: what the library promises of each "
        "part, of yours as well",
    )
    sub.usage = "course.py test [-h] [--mine] [PYTEST ARGUMENTS ...]"
    return top


def chosen(names: Sequence[str]) -> list:
    """The chapters that a command line names; all of them if it names none."""
    from autograder.checking import chapters, find_chapter

    try:
        return [find_chapter(name) for name in names] or list(chapters())
    except LookupError as error:
        raise CommandError(error.args[0]) from None


# ------------------------------------------------------------------------------ commands


def learn(args: argparse.Namespace) -> int | None:
    from autograder import learning

    if args.port is not None and not 1 <= args.port <= 65535:
        raise CommandError(f"--port is a number from 1 to 65535, not {args.port}")
    return learning.learn(
        ROOT,
        port=args.port,
        browser=not args.no_browser,
        submitted=args.submitted,
        chapter=chosen([args.chapter])[0].slug if args.chapter else None,
    )


def check(args: argparse.Namespace) -> int:
    from autograder import running

    chapter = chosen([args.chapter])[0]
    with console.status(f"Running {chapter.slug} …"):
        try:
            results = running.check_notebook(ROOT, chapter)
        except running.RunError as error:
            raise CommandError(str(error)) from None
    for name, result in results.items():
        print(result if result else f"{chapter.exercises[name].number} {name}: not checked")
    earned = sum(r.earned for r in results.values() if r)
    console.print(f"\n[bold]{earned} of {chapter.points} points[/] in {chapter.slug}.")
    if earned < chapter.points:
        console.print(
            f"Next: mend what is marked ✗, then `python3 course.py check {args.chapter}`."
        )
    else:
        console.print("All done. Next: `python3 course.py progress`.")
    return 0


def grade(args: argparse.Namespace) -> int:
    if not args.submitted:
        if args.workers or args.scheduler or args.db or args.unsafe_no_sandbox:
            raise CommandError("that option is for a class's submissions: add --submitted DIR")
        from autograder import grading

        grading.grade_own(ROOT, chapters=chosen(args.chapters))
        return 0
    if args.workers is not None and args.workers < 1:
        raise CommandError(f"--workers is a number from 1 on, not {args.workers}")
    if args.workers and args.scheduler:
        raise CommandError("--workers or --scheduler, not both: a cluster has its own workers")
    if args.unsafe_no_sandbox:
        console.print(
            "[yellow]No sandbox:[/] submissions run with your rights. "
            "Only for people whom you trust."
        )
    from autograder.sandbox.warming import Warm

    with contextlib.closing(Warm()) as warm:
        if not args.scheduler and not args.unsafe_no_sandbox:
            warm.start()  # it imports torch while we do
        from autograder import grading

        graded = grading.grade_class(
            ROOT,
            args.submitted,
            chapters=chosen(args.chapters),
            force=args.force,
            workers=args.workers,
            scheduler=args.scheduler or "",
            db=args.db or "",
            sandbox=not args.unsafe_no_sandbox,
            warm=warm,
        )
    return int(any(one.fault for one in graded))


def progress(args: argparse.Namespace) -> int:
    from autograder import progress as standing  # `grading` would take seconds to import

    standing.progress(ROOT)
    return 0


def assemble(args: argparse.Namespace) -> int:
    from autograder import assembling

    target = args.to or ROOT / "my_transformer"
    with console.status("Checking your notebooks …"):
        parts = assembling.assemble(ROOT, target)
    console.print(assembling.table(parts))
    yours = sum(part.yours for part in parts)
    console.print(f"[bold]{yours} of {len(parts)} parts are yours.[/] Written to {target}/")
    console.print(f"A picture of them: {(target / 'parts.svg').as_uri()}", soft_wrap=True)
    console.print(
        f"Next: `from {target.name} import …` works from the folder {target.parent}; "
        "`python3 course.py test --mine` runs the library's own tests on it."
    )
    return 0


def release(args: argparse.Namespace) -> int:
    from autograder import building
    from autograder.classroom import Classroom

    classroom = Classroom(ROOT / "_build" / "nbgrader")
    words = {"new": "written", "updated": "brought up to date", "unchanged": "unchanged"}
    for chapter in chosen(args.chapters):
        with console.status(f"Building {chapter.slug} …"):
            released = classroom.add(ROOT, chapter)
            found = building.install(ROOT, chapter, released, args.fresh)
        path = building.notebook_path(ROOT, chapter).relative_to(ROOT)
        if found.outcome != "kept":
            console.print(f"{path}: {words[found.outcome]}")
        elif args.fresh:
            console.print(f"{path}: yours, left alone; a fresh copy is {found.path.name}")
        else:
            console.print(
                f"{path}: yours, left alone. For a fresh copy beside it: "
                f"python3 course.py release {chapter.number} --fresh"
            )
    return 0


def book(args: argparse.Namespace) -> int:
    from autograder import book as building_the_book

    pages = building_the_book.build(ROOT, force=args.force)
    console.print(f"The book is in {pages}. Next: `python3 course.py learn` to read it.")
    return 0


def experiment(args: argparse.Namespace) -> int:
    return _script(args.name, ROOT / "experiments", "experiment")


def bench(args: argparse.Namespace) -> int:
    return _script(args.name, ROOT / "benchmarks", "bench")


def _script(name: str | None, folder: Path, command: str) -> int:
    """Run one of a folder's scripts, or list them with the first line of their docstrings."""
    scripts = {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}
    if name is None:
        for stem, path in scripts.items():
            first = path.read_text(encoding="utf-8").lstrip().splitlines()[0].strip("\"' ")
            console.print(f"  [bold]{stem}[/]  {first}")
        console.print(f"Run one with `python3 course.py {command} NAME`.")
        return 0
    if name not in scripts:
        raise CommandError(f"no {name!r}. There are: {', '.join(scripts)}")
    console.print(f"Running {scripts[name].relative_to(ROOT)} …")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.call([sys.executable, scripts[name]], cwd=ROOT, env=environment)


def test(args: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "pytest"]
    if not args.mine:
        return subprocess.call([*command, *args.arguments], cwd=ROOT)
    from autograder import assembling, mine

    target = ROOT / "my_transformer"
    with console.status("Checking your notebooks …"):
        parts = assembling.assemble(ROOT, target)
    yours = sum(part.yours for part in parts)
    console.print(f"[bold]{yours} of {len(parts)} parts are yours[/]; the rest is the course's.")
    tests = sorted((ROOT / "tests").glob("test_solutions_*.py"))
    environment = os.environ | {mine.VARIABLE: str(target)}
    plugin = ["-p", "autograder.mine", "-p", "no:cacheprovider"]
    return subprocess.call([*command, *plugin, *tests, *args.arguments], cwd=ROOT, env=environment)
