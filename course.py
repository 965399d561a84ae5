#!/usr/bin/env python3
"""The front door of *Attention to Detail*: sets the course up, then hands over to its commands.

    python3 course.py learn     read, code and check, side by side in the browser
    python3 course.py test      run every test
    python3 course.py --help    everything else

Needs Python 3.10 or newer and nothing else. The first start makes `.venv` and installs
requirements.txt into it; later ones find that done and lose no time.
"""

# This file stays readable for Python 3.6, so that an old Python gets a sentence, not a SyntaxError.
import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

OLDEST = (3, 10)
ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
STAMP = os.path.join(VENV, "course-stamp.json")
LOG = os.path.join(ROOT, "_build", "setup.log")
SPACE_GB = 3  # for what is installed, and for what pip unpacks on the way

COMMANDS = {
    "learn": "open the course in the browser: the book and JupyterLab, side by side",
    "test": "run every test",
    "check": "check one of your notebooks, from the terminal",
    "grade": "grade your notebooks, or a folder of submissions",
    "progress": "what is done, what is next, and how long it takes",
    "assemble": "put your finished pieces together as the package my_transformer",
    "release": "rebuild the exercise notebooks (authors)",
    "book": "build the book (authors)",
    "experiment": "run the measurements that a chapter plots (authors)",
    "bench": "measure speed and memory against what you would use instead (authors)",
}
TELLS_OF_NO_NETWORK = (
    "NewConnectionError|Connection refused|name resolution|Name or service not known|ProxyError"
    "|ConnectTimeout|ReadTimeout|Read timed out|SSLError|getaddrinfo failed|Network is unreachable"
    "|Max retries exceeded|IncompleteRead|Connection aborted|Connection reset"
)


class Stop(Exception):
    """The set-up cannot go on; the text is the one line that says why."""


def main(arguments):
    """Set up what the command needs, then become that command. Returns an exit status."""
    try:
        require_python(sys.version_info)
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(usage())
            return 0
        command = arguments[0]
        if command not in COMMANDS:
            raise Stop(unknown(command))
        testing = command == "test"
        asks = "-h" in arguments or "--help" in arguments
        if not is_ready(testing) and not (asks and is_ready(False)):
            if asks:
                return help_before_setup(command)
            set_up(testing)
        if testing and not asks and "--mine" not in arguments:
            require_chromium()
            offer_bubblewrap()
        return hand_over(arguments)
    except Stop as problem:
        print(f"course.py: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. The next start goes on from here.", file=sys.stderr)
        return 130
    except OSError as problem:
        print(f"course.py: {explain_os_error(problem)}", file=sys.stderr)
        return 2


# --- what the user sees ------------------------------------------------------------------------


def usage():
    """The text of --help: every command with one line."""
    lines = ["usage: python3 course.py COMMAND [options]", ""]
    lines += [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    lines += ["", "`python3 course.py COMMAND --help` shows a command's options."]
    return "\n".join(lines)


def unknown(command):
    """One line for a command that does not exist, with the one that was probably meant."""
    import difflib  # only this line of text needs it

    near = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else "--help lists them."
    return f"there is no command '{command}'; {hint}"


def help_before_setup(command):
    """Show a command's options while nothing is installed yet; the parser needs nothing."""
    sys.path.insert(0, ROOT)
    try:
        from autograder.cli import main as cli
    except ImportError:
        print(f"usage: python3 course.py {command}\n\n{COMMANDS[command]}")
        return 0
    return cli([command, "--help"])


def explain_os_error(problem):
    """One line for what the system refuses: no room, no right to write, or something rarer."""
    import errno

    where = getattr(problem, "filename", None) or ROOT
    if problem.errno == errno.ENOSPC:
        return f"no space left on the disk of {ROOT}."
    if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"cannot write {where}: the course needs a folder that you may write to."
    return f"{where}: {problem.strerror or problem}"


# --- what must be there before anything can be installed ---------------------------------------


def require_python(version):
    """Raise Stop unless `version` (as sys.version_info) is one that the course runs on."""
    if tuple(version[:2]) < OLDEST:
        raise Stop(
            "Python {}.{} is too old: the course needs {}.{} or newer "
            "(try python3.12 course.py, or python.org/downloads).".format(
                version[0], version[1], *OLDEST
            )
        )


def require_venv_module():
    """Raise Stop when this Python cannot make virtual environments, and name the package."""
    from importlib.util import find_spec

    if find_spec("venv") is None or find_spec("ensurepip") is None:
        raise Stop(
            "this Python has no venv module; on Debian and Ubuntu: "
            "apt install python{}.{}-venv".format(*sys.version_info[:2])
        )


def require_space(folder, needed_gb=SPACE_GB):
    """Raise Stop when `folder`'s disk has less than `needed_gb` gigabytes free."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < needed_gb:
        raise Stop(
            f"not enough disk space: the set-up needs {needed_gb} GB, "
            f"the disk of {folder} has {free:.1f} GB left."
        )


# --- the stamp: what was installed, so that a second start skips it ----------------------------


def venv_bin():
    """The folder of the virtual environment's programs."""
    return os.path.join(VENV, "Scripts" if os.name == "nt" else "bin")


def venv_python():
    """The virtual environment's Python."""
    return os.path.join(venv_bin(), "python.exe" if os.name == "nt" else "python")


def fingerprint(testing):
    """A hash of all that decides what belongs into .venv: the lists, the place, the Python."""
    digest = hashlib.sha256()
    # The system's python3 may become a newer one under our feet.
    digest.update("\0".join((ROOT, os.path.realpath(venv_python()))).encode())
    for name in ["requirements.txt", "pyproject.toml"] + ["requirements-test.txt"] * testing:
        path = os.path.join(ROOT, name)
        try:
            with open(path, "rb") as file:
                digest.update(b"\0" + file.read())
        except FileNotFoundError:
            raise Stop(f"{path} is missing: this copy of the course is incomplete.") from None
    return digest.hexdigest()


def read_stamp():
    """Where .venv was made and the fingerprints of what it holds; {} if that is not known."""
    try:
        with open(STAMP) as file:
            stamp = json.load(file)
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(stamp):
    """Note what is installed; half a file after a power cut reads as no stamp."""
    with open(STAMP, "w") as file:
        json.dump(stamp, file)


def is_ready(testing):
    """Whether .venv holds all that the command needs."""
    if not os.path.exists(venv_python()):
        return False
    stamp = read_stamp()
    names = ["learn"] + ["test"] * testing
    return all(stamp.get(name) == fingerprint(name == "test") for name in names)


# --- the set-up --------------------------------------------------------------------------------


def set_up(testing):
    """Make .venv, install into it what is missing, and note that it is done, last of all."""
    # Whoever ends this ends pip, too: `run` sees to it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    fingerprint(testing)  # a missing list is said before anything is made
    stamp = read_stamp()
    if "learn" not in stamp:
        require_space(ROOT)
        print("Setting up the course, once. This takes a few minutes.", flush=True)
    else:
        print("Bringing the course up to date.", flush=True)
    # Its programs hold the path that they were installed in, so it cannot move.
    moved = stamp.get("home", VENV) != VENV
    stamp = {"home": VENV}
    pip = None if moved else pip_version()
    if pip is None:
        require_venv_module()
        if os.path.isfile(VENV) or os.path.islink(VENV):
            raise Stop(f"{VENV} is in the way: the course keeps its programs there.")
        # From inside another environment, start from the Python behind it.
        python = getattr(sys, "_base_executable", None) or sys.executable
        make = [python, "-m", "venv", "--clear", VENV]
        run("Making .venv with Python {}.{}".format(*sys.version_info[:2]), make)
        pip = pip_version()
        if pip is None:
            raise Stop(f"the environment in {VENV} does not work; see {LOG}")
    write_stamp(stamp)  # what is installed is unknown until all of it is
    install = [venv_python(), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    # pip's progress as lines of text, which only newer ones have
    bar = ["--progress-bar", "raw" if pip >= (24, 1) else "off"]
    requirements = os.path.join(ROOT, "requirements.txt")
    run("Installing PyTorch, JupyterLab and the rest", install + bar + ["-r", requirements])
    run(
        "Installing the course itself",
        install + ["--no-deps", "--no-build-isolation", "--editable", ROOT],
    )
    stamp["learn"] = fingerprint(False)
    if testing:
        extra = os.path.join(ROOT, "requirements-test.txt")
        run("Installing what the tests need", install + bar + ["-r", extra])
        stamp["test"] = fingerprint(True)
    write_stamp(stamp)


def pip_version():
    """The version of .venv's pip as a tuple; None when the environment is missing or broken."""
    probe = (
        "import sys, pip; assert sys.prefix != sys.base_prefix;"
        f"assert sys.version_info >= {OLDEST}; print(pip.__version__)"
    )
    try:
        out = subprocess.check_output(
            [venv_python(), "-c", probe], stderr=subprocess.DEVNULL, env=environment()
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return tuple(int(part) for part in re.findall(rb"\d+", out)[:2])


def run(title, command):
    """Run one step of the set-up under a live line; raises Stop with the reason if it fails."""
    os.makedirs(os.path.dirname(LOG), exist_ok=True)
    with open(LOG, "w", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(), cwd=ROOT
        )
        line = Line(title)
        reader = threading.Thread(target=follow, args=(process.stdout, log, line), daemon=True)
        reader.start()
        try:
            while process.poll() is None:
                time.sleep(0.2)
                line.show()
        except BaseException:
            process.terminate()
            process.wait()
            line.end("stopped")
            raise
        reader.join()
    line.end("done" if process.returncode == 0 else "failed")
    if process.returncode != 0:
        with open(LOG, encoding="utf-8", errors="replace") as log:
            raise Stop(explain(log.read()))


def follow(stream, log, line):
    """Copy what a step prints into the log and keep the live line's detail up to date."""
    for raw in stream:
        text = raw.decode("utf-8", "replace")
        progress = re.match(r"Progress (\d+) of (\d+)", text)
        if progress:
            done, total = int(progress.group(1)), int(progress.group(2))
            line.part = f" {done / max(total, 1):.0%} of {total / 1e6:.0f} MB"
            continue
        log.write(text)
        log.flush()
        words = text.split()
        if words[:1] in (["Collecting"], ["Downloading"], ["Building"]):
            name = re.split(r"[<>=!~;\[(]", words[-1 if words[0] == "Building" else 1])[0]
            line.detail, line.part = name.rsplit("/", 1)[-1].split("-")[0], ""
        elif words[:1] == ["Installing"]:
            line.detail, line.part = "unpacking", ""


class Line:
    """One line of progress: rewritten in place on a terminal, now and then repeated in a log."""

    def __init__(self, title):
        self.title, self.detail, self.part = title, "", ""
        self.start = self.shown = time.time()
        self.live = sys.stdout.isatty()
        if not self.live:
            print(f"  {title} …", flush=True)

    def show(self):
        """Bring the line up to date."""
        if self.live:
            text = f"  {self.title} … {self.elapsed()}  {self.detail}{self.part}"
            width = shutil.get_terminal_size().columns - 1
            print("\r" + text[:width].ljust(width), end="", flush=True)
        elif time.time() - self.shown > 20:
            self.shown = time.time()
            print(f"    {self.elapsed()}  {self.detail}{self.part}".rstrip(), flush=True)

    def end(self, word):
        """Replace the line by its outcome."""
        text = f"  {self.title}: {word} ({self.elapsed()})"
        width = shutil.get_terminal_size().columns - 1
        print(("\r" + text.ljust(width)) if self.live else text, flush=True)

    def elapsed(self):
        """Minutes and seconds since the start."""
        return "{}:{:02d}".format(*divmod(int(time.time() - self.start), 60))


def explain(log):
    """One line for a failed step, read off what it printed."""
    collected = re.findall(r"^Collecting (\S+)", log, re.M)
    wanted = re.search(r"satisfies the requirement (.+?)(?: \(from|$)", log, re.M)
    package = wanted.group(1) if wanted else collected[-1] if collected else "the packages"
    see = f"Details: {LOG}"
    if re.search("No space left on device|not enough space on the disk", log):
        return f"no space left on the disk, while installing {package}. {see}"
    if re.search(TELLS_OF_NO_NETWORK, log):
        return f"cannot download {package}: no connection to the package index. {see}"
    if re.search("Permission denied|Read-only file system|Access is denied", log):
        return f"cannot write in {VENV}, while installing {package}. {see}"
    if wanted:
        python = "{}.{}".format(*sys.version_info[:2])
        return f"pip finds no {package} that fits Python {python} on this machine. {see}"
    if "ensurepip" in log:
        return "cannot put pip into .venv; on Debian and Ubuntu: apt install python3-venv. " + see
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.match("error", line, re.I)]
    for line in lines[-8:]:
        print("    " + line, file=sys.stderr)
    return "{} {}".format((errors or lines or ["the step ended without a word."])[-1], see)


# --- what the tests need of the system ----------------------------------------------------------


def chromium():
    """The path of a Chromium or Chrome that the tests can drive, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    for path in filter(None, map(shutil.which, names)):
        # Ubuntu's package is a stub that only says where the browser went.
        probe = subprocess.run(
            [path, "--version"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        if probe.returncode == 0 and b"Chrom" in probe.stdout:
            return path
    places = [
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
    ]
    caches = [
        os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or "~/.cache/ms-playwright",
        "~/Library/Caches/ms-playwright",
        "~/AppData/Local/ms-playwright",
    ]
    for cache in caches:
        for inside in ("chrome-linux*/chrome", "chrome-mac*/*.app/Contents/MacOS/*"):
            places += glob.glob(os.path.join(os.path.expanduser(cache), "chromium-*", inside))
        places += glob.glob(
            os.path.join(os.path.expanduser(cache), "chromium-*", "chrome-win*", "chrome.exe")
        )
    return next(filter(os.path.exists, places), None)


def is_root():
    """Whether system packages can be installed without asking."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def offer_bubblewrap():
    """Install the sandbox of graded runs where that is easy; else its tests say what is missing."""
    if sys.platform.startswith("linux") and shutil.which("bwrap") is None and is_root():
        apt = ["apt-get", "-y", "-o", "DPkg::Lock::Timeout=60", "install"]
        with contextlib.suppress(Stop, OSError):
            run("Getting bubblewrap for the tests of grading", apt + ["bubblewrap", "libseccomp2"])


def require_chromium():
    """Leave a Chromium's path in COURSE_CHROMIUM for the tests; install one if need be."""
    path = os.environ.get("COURSE_CHROMIUM") or chromium()
    playwright = [venv_python(), "-m", "playwright", "install", "chromium"]
    attempts = []
    if is_root() and shutil.which("apt-get"):
        apt = ["apt-get", "-y", "-o", "DPkg::Lock::Timeout=60"]
        attempts.append([apt + ["update"], apt + ["install", "chromium"]])
        attempts.append([playwright[:4] + ["--with-deps", "chromium"]])
    else:
        attempts.append([playwright])
    for steps in attempts:
        if path:
            break
        with contextlib.suppress(Stop):
            for step in steps:
                run(f"Getting Chromium for the browser tests ({step[0]})", step)
        path = chromium()
    if not path:
        raise Stop(
            "the browser tests need Chromium and it could not be installed; install the package "
            "chromium (or Google Chrome), or name one in COURSE_CHROMIUM. Details: " + LOG
        )
    os.environ["COURSE_CHROMIUM"] = path


# --- handing over ------------------------------------------------------------------------------


def environment():
    """The environment of everything that runs in .venv."""
    env = dict(os.environ, VIRTUAL_ENV=VENV, PIP_USER="0", PYTHONUTF8="1")
    # nbgrader calls alembic by name
    env["PATH"] = venv_bin() + os.pathsep + env.get("PATH", os.defpath)
    env.pop("PYTHONHOME", None)
    return env


def hand_over(arguments):
    """Become `python -m autograder …` in .venv; on Windows, run it and return its status."""
    command = [venv_python(), "-m", "autograder"] + arguments
    sys.stdout.flush()
    if os.name != "nt":
        os.execve(command[0], command, environment())
    try:
        return subprocess.call(command, env=environment())
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
