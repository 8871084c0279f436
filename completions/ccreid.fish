# fish completion for ccreid. `ccreid completion fish` prints this file.

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
