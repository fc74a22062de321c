# What scripts/bench-pinger has printed, as the tables of perf/pinger.md.

function median(list, count,    i, j, each, v) {
    split(list, v, " ")
    for (i = 2; i <= count; i++) {
        each = v[i] + 0
        for (j = i - 1; j > 0 && v[j] + 0 > each; j--) v[j + 1] = v[j]
        v[j + 1] = each
    }
    least = v[1]; most = v[count]
    return count % 2 ? v[(count + 1) / 2] : (v[count / 2] + v[count / 2 + 1]) / 2
}

# A time as Rust prints it, in microseconds.
function micros(text) {
    if (text ~ /ns$/) return text / 1000
    if (text ~ /ms$/) return text * 1000
    if (text ~ /[0-9.]s$/) return text * 1000000
    return text + 0
}

# What follows a word in the line, up to a comma or semicolon.
function after(word,    at, rest) {
    at = index($0, word " ")
    if (!at) return "?"
    rest = substr($0, at + length(word) + 1)
    sub(/[,;].*/, "", rest)
    return rest
}

# The name that a line begins with: two spaces end it.
function name() {
    return substr($0, 1, match($0, /  +/) - 1)
}

/^== / { part = substr($0, 4); phase = 0; next }
/^-- / { phase++; next }

/ us of CPU and / {
    who = name()
    if (!(who in rounds)) names[++contenders] = who
    rounds[who]++
    match($0, /[0-9.]+ us of CPU/)
    cpu[who] = cpu[who] " " substr($0, RSTART, RLENGTH - 10)
    match($0, /[^ ]+ wake-ups/)
    wakes[who] = wakes[who] " " substr($0, RSTART, RLENGTH - 9)
    if (match($0, /[0-9]+ sent, [0-9]+ answered/)) {
        split(substr($0, RSTART, RLENGTH), counts, " ")
        sent[who] += counts[1]
        answered[who] += counts[3]
    }
    next
}

part ~ /^round-trip/ && / answered, .*p50 / {
    who = name()
    if (!(who in seen)) { seen[who] = 1; pingers[++rtts] = who }
    times[who, phase] = times[who, phase] (times[who, phase] ? "; " : "") \
        sprintf("%.1f, %.1f", micros(after("p50")), micros(after("p99")))
    next
}

part ~ /^one engine thread/ && / answered, / {
    match($0, /[0-9]+ sent, [0-9]+ answered, [0-9.]+ s/)
    split(substr($0, RSTART, RLENGTH), counts, " ")
    loopback = loopback sprintf("| %s | %d of %d | %s s | %.1f us | %.1f us |\n", name(), counts[3], counts[1], counts[5],
        micros(after("p50")), micros(after("p99")))
    next
}

part ~ /^10,000/ && / late by / {
    match($0, /:/)
    silent = silent sprintf("| timeouts, %s | %.2f ms | %.2f ms | %.2f ms |\n", "begun " substr($0, 1, RSTART - 1),
        micros(after("p50")) / 1000, micros(after("p99")) / 1000, micros(after("max")) / 1000)
    next
}

part ~ /^10,000/ && / dropped, / { dropped = $0 }

END {
    print "| contender | CPU a request | of fping -i 1 | wake-ups a request | answered |"
    print "| --- | --- | --- | --- | --- |"
    base = median(cpu["fping -i 1"], rounds["fping -i 1"])
    for (i = 1; i <= contenders; i++) {
        who = names[i]
        middle = median(cpu[who], rounds[who])
        printf "| %s | %.1f (%.1f to %.1f) us | %s | ", who, middle, least, most, base ? sprintf("%.2f", middle / base) : "?"
        if (wakes[who] ~ /nan/) printf "not counted"
        else printf "%.2f", median(wakes[who], rounds[who])
        if (sent[who]) printf " | %d of %d |\n", answered[who], sent[who]
        else print " | not counted |"
    }
    print "\n| contender: p50, p99 of each round | as the machine is, us | with two busy loops a CPU, us |"
    print "| --- | --- | --- |"
    for (i = 1; i <= rtts; i++) printf "| %s | %s | %s |\n", pingers[i], times[pingers[i], 1], times[pingers[i], 2]
    print "\n| back end | answered | time | p50 | p99 |"
    print "| --- | --- | --- | --- | --- |"
    printf "%s", loopback
    print "\n| | late by p50 | p99 | most |"
    print "| --- | --- | --- | --- |"
    printf "%s\n%s\n", silent, dropped
}
