# bash completion for ccreid. `ccreid completion bash` prints this file.

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
