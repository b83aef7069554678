"""Record with stock lttng (lttng-sessiond and lttng-consumerd of this machine) in a guest."""

# Both have the same rings, and are woken 20 times a second.
STOCK = r"""
SUBBUFFERS=${SUBBUFFERS:-16}
WHAT="lttng,events=sched_*,irq_*,syscalls=*,subbuffer-size=256K,subbuffers=$SUBBUFFERS"
export LTTNG_HOME=/tmp/stock-home
start_stock() {  # It looks for its modules in /lib/modules, and refuses an index without builtins.
    local release=$(uname -r) all=/tmp/stock-modules
    mkdir -p $LTTNG_HOME $all
    cp -r /out/lttng-modules/lib $all
    cp /lib/modules/$release/modules.{builtin,builtin.modinfo,order} $all/lib/modules/$release
    depmod -b $all $release || exit 8
    unshare --mount sh -c "mount --bind $all/lib/modules /lib/modules
        exec lttng-sessiond --kmod-probes=sched,irq" > "$OUT/sessiond" 2>&1 &
    sessiond=$!
    for _ in $(seq 300); do
        lttng --no-sessiond list > /dev/null 2>&1 && return
        sleep 0.2
    done
    cat "$OUT/sessiond"
    exit 9
}
stop_stock() { kill $sessiond; wait $sessiond; }
stock() { echo "$ lttng $*"; lttng --no-sessiond "$@"; }
begin_stock() {  # DIR [OPTION...]: $consumerd is its pid
    local dir=$1
    shift
    {
        stock create stock --output=$dir &&
        stock enable-channel --kernel all --subbuf-size=256K --num-subbuf=$SUBBUFFERS \
            --read-timer=50000 "$@" &&
        stock enable-event --kernel --channel=all 'sched_*,irq_*' &&
        stock enable-event --kernel --channel=all --syscall --all &&
        stock start
    } >> "$OUT/stock" 2>&1 || { cat "$OUT/stock"; exit 10; }
    consumerd=$(pgrep -f 'lttng-consumerd.* -k' | head -1)
}
end_stock() {
    stock stop >> "$OUT/stock" 2>&1
    echo "stop $?"
    stock list stock >> "$OUT/stock" 2>&1
    stock destroy stock >> "$OUT/stock" 2>&1
    echo "destroy $?"
}
"""

# Of what a recorder writes.
GROWTH = r"""
bytes_in() { find $1 -type f -path "$2" -printf '%s\n' | awk '{ n += $1 } END { print n + 0 }'; }
cpu_ns() { cat /proc/$1/task/*/schedstat | awk '{ n += $1 } END { printf "%.0f\n", n }'; }
so_far() {  # PID DIR PATTERN: bytes of files, CPU time of all threads, user and system time
    echo $(bytes_in $2 "$3") $(cpu_ns $1) $(awk '{ print $14, $15 }' /proc/$1/stat)
}
used() {  # WHO HOW BYTES NS USER SYSTEM BYTES NS USER SYSTEM: prints the differences
    echo "used $1 $2 $(($7 - $3)) $(($8 - $4)) $(($9 - $5)) $((${10} - $6))"
}
under_load() {  # SECONDS WHO PID DIR PATTERN: prints the use during a time under load
    local seconds=$1 who=$2 before
    shift 2
    busy
    sleep 2
    before=$(so_far "$@")
    sleep $seconds
    used $who load $before $(so_far "$@")
    idle
}
in_a_burst() {  # SECONDS WHO PID DIR PATTERN: the same for a recorder that finds its rings full
    local seconds=$1 who=$2 before size now
    shift 2
    kill -STOP $1
    busy
    sleep $seconds
    idle
    before=$(so_far "$@")
    kill -CONT $1
    size=${before%% *} now=$size
    # Afterwards it still records its own few events.
    while [ $now = ${before%% *} ] || [ $((now - size)) -gt 65536 ]; do
        sleep 0.5
        size=$now now=$(bytes_in $2 "$3")
    done
    used $who burst $before $(so_far "$@")
}
"""
