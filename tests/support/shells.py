"""Real shells on a pseudo-terminal: type, press Tab, read the command line back."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

SHOWN = re.compile(rb"<<<(.*?)>>>", re.DOTALL)
TAB = "\t"
SHOW_LINE = "\x18\x10"  # C-x C-p, bound to print the line

START = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        "PS1='$ '; bind 'set enable-bracketed-paste off'; bind 'set completion-query-items 0'; "
        "bind 'set page-completions off'; "
        """bind -x '"\\C-x\\C-p": printf "<<""<%%s>>>" "$READLINE_LINE"'; source %s\n""",
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        "PS1='$ '; unset zle_bracketed_paste; autoload -Uz compinit; compinit -u -D; setopt no_list_beep; "
        """show() { print -rn -- "<<""<$BUFFER>>>" }; zle -N show; bindkey '^X^P' show; source %s\n""",
    ),
}


class Shell:
    """An interactive shell in `folder` that has read a completion script, with `ccreid` on its PATH."""

    def __init__(self, kind: str, script: Path, folder: Path, bin_folder: Path) -> None:
        command, setup = START[kind]
        self.terminal, inner = pty.openpty()
        environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "TERM": "xterm", "HOME": str(folder)}
        environment.pop("COLUMNS", None)
        self.process = subprocess.Popen(
            command, stdin=inner, stdout=inner, stderr=inner, cwd=folder, env=environment, start_new_session=True
        )
        os.close(inner)
        self._type(setup % script)
        assert self.line("echo hello", keys="") == "echo hello"

    def _type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def line(self, typed: str, keys: str = TAB) -> str:
        """Return what the command line reads after typing `typed` and then `keys`."""
        return self._ask(typed, keys)[0]

    def offers(self, typed: str) -> list[str]:
        """Return the words listed when Tab is pressed twice."""
        listed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\x07]", "", self._ask(typed, TAB + TAB)[1])
        return listed.split()

    def _ask(self, typed: str, keys: str) -> tuple[str, str]:
        self._type("\x15")  # C-u: an empty line
        self._type(typed)
        for key in keys:
            self._type(key)
            time.sleep(0.05)
        self._type(SHOW_LINE)
        seen, deadline = b"", time.monotonic() + 30
        while not (found := SHOWN.search(seen)):
            assert time.monotonic() < deadline, seen
            if select.select([self.terminal], [], [], 0.5)[0]:
                seen += os.read(self.terminal, 65536)
        return found.group(1).decode(), seen[: found.start()].decode(errors="replace")

    def close(self) -> None:
        os.close(self.terminal)
        self.process.kill()
        self.process.wait()


def make_command(bin_folder: Path) -> None:
    """Write a `ccreid` that runs this checkout."""
    bin_folder.mkdir(parents=True, exist_ok=True)
    root = Path(__file__).parents[2]
    script = bin_folder / "ccreid"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{root}" exec "{sys.executable}" -m ccreid_cli "$@"\n')
    script.chmod(0o755)
