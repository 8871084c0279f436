# PowerShell completion for ccreid. `ccreid completion powershell` prints this file.

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
