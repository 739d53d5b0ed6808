"""`salt-sweep completion`: shell completion of all four commands."""

from __future__ import annotations

import argparse
from typing import Any

from sweeps.command import add_command

#: Completes a study: YAML files, and the names of plans in the store.
_PREAMBLE = {
    "bash": """
_salt_studies() {
  local plans="${SALT_STORE:-salt-store}/plans"
  compgen -f -X '!*.y*ml' -- "$1"
  compgen -d -S / -- "$1"
  [ -d "$plans" ] && compgen -W "$(ls -1 "$plans")" -- "$1"
}
""",
    "zsh": """
_salt_studies() {
  _files -g '*.(yaml|yml)'
  local plans=(${SALT_STORE:-salt-store}/plans/*(N:t))
  compadd -a plans
}
""",
}
_STUDIES = {"bash": "_salt_studies", "zsh": "_salt_studies"}


def add_completion(commands: Any) -> None:
    parser = add_command(
        commands,
        "completion",
        _completion,
        "shell completion of salt-sweep, salt-analyze, salt-train and salt-data",
        "Print a script that completes commands, options, study files and the names of plans.",
        [
            'eval "$(salt-sweep completion bash)"          # in ~/.bashrc',
            "salt-sweep completion zsh > ~/.zfunc/_salt    # in a folder of zsh's fpath, before compinit",
        ],
        store=False,
    )
    parser.add_argument("shell", choices=("bash", "zsh"), help="which shell")


def _completion(args: argparse.Namespace) -> int:
    scripts = {parser.prog: _script(parser, args.shell) for parser in parsers()}
    text = _one_for_zsh(scripts) if args.shell == "zsh" else "\n".join(scripts.values())
    if args.json:
        from sweeps.command import print_json

        print_json({"shell": args.shell, "script": text})
        return 0
    print(text)
    return 0


def _one_for_zsh(scripts: dict[str, str]) -> str:
    """One script for all commands: zsh reads in a file's first line alone which commands it completes."""
    names = " ".join(scripts)
    lines = [f"#compdef {names}", ""]
    for script in scripts.values():
        lines += [script.partition("\n")[2].partition("typeset -A opt_args")[0]]
    cases = [f'    {name}) _shtab_{name.replace("-", "_")} "$@" ;;' for name in scripts]
    lines += ["_salt_commands() {", "  typeset -A opt_args", "  case $service in", *cases, "  esac", "}", ""]
    lines += [
        "if [[ $zsh_eval_context[-1] == eval ]]; then",
        f"  compdef _salt_commands {names}",
        "else",
        '  _salt_commands "$@"',
        "fi",
    ]
    return "\n".join(lines)


def parsers() -> list[argparse.ArgumentParser]:
    """The parsers of all four commands."""
    from analysis.cli import parser as analyze
    from salt.data_cli import _parser as data
    from salt.train_cli import _parser as train
    from sweeps.cli import _parser as sweep

    return [sweep(), analyze(), train(), data()]


def _script(parser: argparse.ArgumentParser, shell: str) -> str:
    import shtab

    _mark(parser, shtab)
    text: str = shtab.complete(parser, shell, preamble=_PREAMBLE[shell])
    return text


def _mark(parser: argparse.ArgumentParser, shtab: Any) -> None:
    """Say what completes each argument: studies, folders, files."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in set(action.choices.values()):
                _mark(sub, shtab)
        elif action.metavar == "STUDY":
            action.complete = _STUDIES  # type: ignore[attr-defined]
        elif action.dest in ("store", "out", "folder") or action.metavar == "DIR":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif str(action.metavar).startswith(("FILE", "SITE", "LIST")):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
