"""`ccreid completion`: the scripts that let bash, zsh, fish and PowerShell complete a command line.

Each script hands the words up to the cursor to ``ccreid`` itself (see `answers`) and shows what comes back;
where nothing comes back, the shell completes file names. This module makes both what the command prints and the files
in ``completions/`` (``python -m ccreid_cli.cli.completion.scripts completions``).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ccreid_cli.cli import output
from ccreid_cli.cli.completion import values as completion_values

BASH = r"""# bash completion for ccreid. `ccreid completion bash` prints this file.

_ccreid() {
    local rest=${COMP_LINE:0:COMP_POINT} words=() before='' piece='' value i
    # Readline also splits words at ':' and '='. Put together again what no space separates: `before` becomes the part
    # of the last word that readline leaves alone, `piece` the part that it replaces.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        if [[ $i -eq 0 || $rest == [[:space:]]* ]]; then
            rest=${rest#"${rest%%[![:space:]]*}"}
            words+=('')
        fi
        before=${words[${#words[@]}-1]}
        piece=${COMP_WORDS[i]}
        ((i < COMP_CWORD)) || piece=$rest
        words[${#words[@]}-1]+=$piece
        rest=${rest#"$piece"}
    done
    [[ $piece == *[!:=]* ]] || before+=$piece
    [[ $before != -*=* ]] || before=${before#*=}
    before=${before//\\/}

    while IFS=$'\t' read -r value _; do
        value=${value#"$before"}
        [[ $piece == [\"\']* ]] || printf -v value %q "$value"
        COMPREPLY+=("$value")
    done < <(_CCREID_OFFER=quoted "$1" "${words[@]:1}" 2>/dev/null)
    # A folder is not the end of a path.
    [[ ${#COMPREPLY[@]} -ne 1 || ${COMPREPLY[0]} != */ ]] || compopt -o nospace 2>/dev/null
    return 0
}

complete -o bashdefault -o default -F _ccreid ccreid
"""

ZSH = r"""#compdef ccreid
# zsh completion for ccreid. `ccreid completion zsh` prints this file.

_ccreid() {
    local -a answers described folders plain
    local answer value tab=$'\t'
    answers=("${(@f)$(_CCREID_OFFER=quoted ${~words[1]} "${(@)words[2,CURRENT-1]}" "$PREFIX" 2>/dev/null)}")
    for answer in $answers; do
        value=${answer%%$tab*}
        if [[ $answer == *$tab* ]]; then
            described+=("${value//:/\\:}:${answer#*$tab}")
        elif [[ $value == */ ]]; then
            folders+=("$value")
        else
            plain+=("$value")
        fi
    done
    [[ $PREFIX == -*=* ]] && compset -P 1 '*='
    (( $#described )) && _describe 'ccreid' described
    (( $#folders )) && compadd -S '' -- $folders
    (( $#plain )) && compadd -- $plain
    (( $#described + $#folders + $#plain )) || _files
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _ccreid "$@"
else
    compdef _ccreid ccreid
fi
"""

FISH = r"""# fish completion for ccreid. `ccreid completion fish` prints this file.

function __ccreid_complete
    set -l token (commandline --current-token --cut-at-cursor)
    set -l words (commandline --tokenize --current-process --cut-at-cursor | string escape)
    set -l answers (env _CCREID_OFFER=quoted ccreid $words[2..-1] "$token" 2>/dev/null)
    # `--option=value` is one token to fish: every answer carries the option along.
    set -l option (string match --regex -- '^-[^=]+=' $token)
    if set -q answers[1]
        printf '%s\n' "$option"$answers
    else
        printf '%s\n' "$option"(__fish_complete_path (string replace -- "$option" '' $token))
    end
end

complete --command ccreid --no-files --arguments '(__ccreid_complete)'
"""

POWERSHELL = r"""# PowerShell completion for ccreid. `ccreid completion powershell` prints this file.

Register-ArgumentCompleter -Native -CommandName ccreid -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $words = @($commandAst.CommandElements | Select-Object -Skip 1 | Where-Object {
        $_.Extent.EndOffset -lt $cursorPosition
    } | ForEach-Object { $_.Extent.Text.Trim("'", '"') })
    $option = if ($wordToComplete -match '^(-[^=]+=)') { $Matches[1] } else { '' }
    $typed = $wordToComplete.Trim("'", '"')
    # Windows PowerShell drops an empty argument that is not quoted twice.
    if (-not $typed -and $PSVersionTable.PSVersion.Major -lt 7) { $typed = '""' }
    $Env:_CCREID_OFFER = 'plain'
    try {
        # No answer makes PowerShell complete file names.
        & $commandAst.CommandElements[0].Extent.Text @words $typed 2>$null | ForEach-Object {
            $value, $help = $_ -Split "`t", 2
            if (-not $help) { $help = $value }
            $text = if ($value -match "[\s'`"]") { "'" + $value.Replace("'", "''") + "'" } else { $value }
            [System.Management.Automation.CompletionResult]::new("$option$text", $value, 'ParameterValue', $help)
        }
    }
    finally {
        Remove-Item Env:_CCREID_OFFER
    }
}
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH, "powershell": POWERSHELL}
FILE_NAMES = {"bash": "ccreid.bash", "zsh": "_ccreid", "fish": "ccreid.fish", "powershell": "ccreid.ps1"}
"""The names under which each shell's own folders of completions take them."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("completion", rich_help_panel="System")(completion)


def completion(
    shell: Annotated[
        str, typer.Argument(help="bash, zsh, fish or powershell.", autocompletion=completion_values.shells)
    ],
) -> None:
    """Print the completion script of a shell. Or, once for all: `ccreid --install-completion`.

    Examples: `ccreid completion bash > ~/.local/share/bash-completion/completions/ccreid`,
    `ccreid completion fish > ~/.config/fish/completions/ccreid.fish`.
    """
    from ccreid_cli.core.errors import UsageError
    from ccreid_cli.core.suggest import did_you_mean

    if shell not in SCRIPTS:
        guess = did_you_mean(shell, SCRIPTS) or f"use one of: {', '.join(SCRIPTS)}."
        raise UsageError(f'there is no completion for "{shell}"; {guess}')
    output.print_text(SCRIPTS[shell])


def write_completions(folder: Path) -> None:
    """Write every shell's script into `folder`."""
    for shell, script in SCRIPTS.items():
        (folder / FILE_NAMES[shell]).write_text(script, encoding="utf-8")


if __name__ == "__main__":
    write_completions(Path(sys.argv[1]))
