#!/bin/bash
# Runs as root in a Debian guest with systemd, after each of its boots; `cargo x test guest` reads what it prints.
# A check is a function; `ok NAME` or `FAILED NAME` ends it. The directory with this script holds perch.deb and image/.
cd "$(dirname "$0")" || exit 1
export NO_COLOR=1
apps=/root/apps

check() {
    # Not as a condition: the shell would pass over all failures but the last.
    out=$(set -e; "$1" 2>&1)
    if [ $? = 0 ]; then
        echo "ok $1"
    else
        echo "FAILED $1"
        printf '%s\n' "$out" | sed 's/^/    /'
        journalctl -u perch -n 25 --no-pager -o cat | sed 's/^/    perch: /'
    fi
}

# soon COMMAND...: until it succeeds, at most two minutes (the guest is emulated).
soon() {
    local end=$((SECONDS + 120))
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || { echo "waited in vain for: $*"; return 1; }
        sleep 0.2
    done
}

# fails COMMAND...: the shell never ends for a failure that is expected by `!`.
fails() { if "$@"; then echo "should have failed: $*"; return 1; fi; }

address() { fly ips list -a "$1" --json | sed -n 's/.*"Address": *"\(fdaa[^"]*\)".*/\1/p'; }
answers() { curl -sS -m 100 "http://[$(address "$1")]/"; }
states() { fly machine list -a "$1" --json | sed -n 's/^ *"state": *"\([a-z]*\)".*/\1/p' | sort | uniq | tr '\n' ' '; }
are() { [ "$(states "$1")" = "$2 " ]; }
server() { systemctl show -P MainPID perch; }
programs() { pidof hello | tr ' ' '\n' | sort -n; }

# group APP: the cgroup of its Machine, whose cgroup is its own.
group() { echo "/sys/fs/cgroup/perch"*"/$(fly machine list -a "$1" --json | sed -n 's/^ *"id": *"\([0-9a-f]*\)".*/\1/p' | head -1)"; }
reads() { [ "$(cat "$1")" = "$2" ]; }
counts() { grep -qE "^$2 [1-9]" "$1"; }

id_of() { basename "$(group "$1")"; }

# late SECONDS: how long systemd waits before it starts the next server.
late() {
    mkdir -p /run/systemd/system/perch.service.d
    printf '[Service]\nRestartSec=%s\n' "$1" > /run/systemd/system/perch.service.d/late.conf
    systemctl daemon-reload
}
in_time() { rm -r /run/systemd/system/perch.service.d; systemctl daemon-reload; }

config() { # NAME, auto_stop_machines, image, sections
    mkdir -p "$apps/$1"
    cat > "$apps/$1/fly.toml" <<TOML
app = '$1'
primary_region = 'lcl'
[build]
  image = 'oci:$PWD/${3:-image}'
[http_service]
  internal_port = 8081
  auto_stop_machines = '$2'
  auto_start_machines = true
  min_machines_running = 0
  auto_stop_after = '1s'
${4:-}
TOML
}

app() { # The same
    config "$@"
    (cd "$apps/$1" && fly launch --flycast --copy-config --name "$1" --ha=false --yes)
}

the_guest_has_cgroup_v2_alone() { [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; }

the_package_installs_and_starts_the_server() {
    dpkg -i perch.deb
    systemctl is-active perch
    systemctl is-enabled perch
    getent group perch
    [ "$(stat -c '%a %G' /run/perch/api.sock)" = '660 perch' ]
    [ "$(stat -c '%a %U' /var/lib/perch)" = '700 root' ]
    fly version
    [ -e /usr/share/man/man1/perch.1.gz ] && [ -e /usr/share/man/man1/fly-apps-list.1.gz ]
}

the_unit_is_what_systemd_understands() {
    local says
    says=$(systemd-analyze verify /usr/lib/systemd/system/perch.service 2>&1)
    [ -z "$says" ] || { echo "$says"; return 1; }
}

the_unit_is_no_more_exposed_than_promised() {
    systemd-analyze security --no-pager --threshold=87 perch.service | tail -1
}

the_client_is_documented() {
    [ -s /usr/share/bash-completion/completions/fly ]
    local page
    for page in perch perch-backup perch-restore perch-fly fly fly-launch; do
        zcat "/usr/share/man/man1/$page.1.gz" | grep '^\.TH'
    done
}

doctor_finds_nothing() { perch doctor; }

a_sleeping_app_is_woken() {
    app quotes stop
    answers quotes | grep Hello
    soon are quotes stopped
    answers quotes | grep Hello
}

machines_are_in_cgroups_of_their_own() {
    app web off
    answers web | grep Hello
    # systemd before 254 starts the next server in the unit's own cgroup, which must hand no controllers down then.
    local pid group
    soon are quotes stopped
    grep -x "0::/system.slice/perch.service" "/proc/$(server)/cgroup"
    [ -z "$(cat /sys/fs/cgroup/system.slice/perch.service/cgroup.subtree_control)" ]
    for pid in $(programs); do
        group=$(sed -n 's#^0::/perch/#/sys/fs/cgroup/perch/#p' "/proc/$pid/cgroup")
        [ "$(cat "$group/memory.max")" -gt 0 ]
        [ "$(cat "$group/pids.max")" -gt 0 ]
        grep -E '^[0-9]+ [0-9]+$' "$group/cpu.max"
    done
}

limits_are_those_of_the_configuration() {
    local group
    group=$(group web)
    reads "$group/memory.max" 268435456
    reads "$group/memory.swap.max" 0
    reads "$group/pids.max" 4096
    # In the kernel's idle class, where it is while it pays for its start, it has none.
    soon reads "$group/cpu.weight" 7
    app strong off image "[[vm]]
  memory = '512mb'
  cpus = 2
  cpu_kind = 'performance'"
    group=$(group strong)
    reads "$group/memory.max" 536870912
    reads "$group/pids.max" 8192
    reads "$group/cpu.weight" 200
    reads "$group/cpu.max" '200000 100000'
    fly apps destroy strong --yes
}

lack_of_memory_is_reported_as_such() {
    app hungry off image "[env]
  HOLD_MB = '300'
[[restart]]
  policy = 'never'" || true
    soon are hungry stopped
    fly status -a hungry | grep 'more than its 256 MB of memory'
    fly machine list -a hungry --json | grep '"oom_killed": *true'
    fly apps destroy hungry --yes
}

a_fork_bomb_is_held_and_neighbours_answer() {
    app bomb off shell "[env]
  SCRIPT = 'while :; do busybox sleep 1000 & done 2>/dev/null'" || true
    local group
    group=$(group bomb)
    # A shell that may not fork ends with 2, and takes its Machine's cgroup and what that counted with it.
    ended() { fly machine list -a bomb --json | grep -E '"oom_killed": *true|"exit_code": *2[,[:space:]]*$'; }
    refused() {
        counts "$group/pids.events" max || counts "$group/memory.events" oom_kill || ended
    }
    soon refused
    answers web | grep Hello
    fly apps destroy bomb --yes
    answers web | grep Hello
}

# Of the app `sleeper`: each call keeps it awake for a second more.
held() { curl -sS -m 100 -D /tmp/head "http://$SLEEPER/held"; }
is_whole() { held | cmp - /tmp/held; }
is_limited() { is_whole && reads "$GROUP/memory.swap.max" 0; }
# Its own limit of swap, which is none at all, is lifted meanwhile.
is_out() {
    reads "$GROUP/memory.swap.max" max
    fly machine list -a sleeper --json | grep '"perch_depth": *"suspended_paged_out"'
}
resumes() { fly machine status "$(basename "$GROUP")" -a sleeper | grep -c resume; }
sleeper() { SLEEPER="[$(address sleeper)]" GROUP=$(group sleeper); }

a_sleeper_goes_to_swap_and_comes_back() {
    echo "page_out_after = '1s'" >> /etc/perch/perch.toml
    systemctl restart perch
    perch swap create 256MiB
    app sleeper suspend image "[env]
  HOLD_MB = '64'"
    sleeper
    held > /tmp/held
    grep '64 MB' /tmp/held
    soon is_limited
    soon is_out
    reads "$GROUP/cgroup.freeze" 1
    grep -x 'frozen 1' "$GROUP/cgroup.events"
    [ "$(cat "$GROUP/memory.swap.current")" -ge $((64 << 20)) ]
    fly status -a sleeper | grep 'suspended, paged out'
    is_whole
    grep -i '^perch-wake: thaw' /tmp/head
    soon is_limited
}

a_sleeper_is_woken_without_a_server_and_sleeps_again_with_the_next() {
    local before
    sleeper
    soon is_out
    before=$(resumes)
    late 10s
    kill -9 "$(server)"
    is_whole
    grep -i '^perch-wake: thaw' /tmp/head
    fails systemctl is-active perch
    soon systemctl is-active perch
    in_time
    [ "$(resumes)" = $((before + 1)) ]
    soon is_limited
    soon is_out
    [ "$(pgrep -fc '^/proc/self/exe proxy$')" = 1 ]
    is_whole
    fly apps destroy sleeper --yes
    perch swap remove
    sed -i '/^page_out_after/d' /etc/perch/perch.toml
    systemctl restart perch
}

what_is_synced_to_a_volume_outlives_everything() {
    local id volume
    config kept off shell "[env]
  SCRIPT = 'echo run | busybox dd of=/data/runs oflag=append conv=notrunc,fsync; exec busybox httpd -f -p 8081 -h /data'
[mounts]
  source = 'data'
  destination = '/data'"
    fly apps create kept
    fly ips allocate-v6 --private -a kept
    fly volumes create data -a kept -s 1 -y
    (cd "$apps/kept" && fly deploy --ha=false)
    volume=$(fly volumes list -a kept | grep -o 'vol_[a-z0-9]*' | head -1)
    id=$(id_of kept)
    runs() { [ "$(curl -sS -m 100 "http://[$(address kept)]/runs" | grep -c run)" = "$1" ]; }
    soon runs 1
    grep -h "/$volume/image" /sys/block/loop*/loop/backing_file
    late 2s
    # The server and its proxy, then what holds the Machine, then all of it with its PID 1.
    systemctl kill --signal=KILL perch
    kill -9 $(pgrep -f " shim /var/lib/perch/machines/$id")
    [ ! -e "/sys/fs/cgroup/perch/$id" ] || echo 1 > "/sys/fs/cgroup/perch/$id/cgroup.kill"
    soon systemctl is-active perch
    in_time
    soon runs 2
    fly apps destroy kept --yes
    fly volumes destroy "$volume" -a kept --yes
    fails grep -h "/$volume/image" /sys/block/loop*/loop/backing_file
}

shims_are_apart_from_the_server() {
    local pid pids
    pids=$(pgrep -f ' shim /var/lib/perch/machines/')
    for pid in $pids; do grep -x "0::/perch/shims" "/proc/$pid/cgroup"; done
}

machines_do_not_inherit_the_servers_privileges() {
    local pid
    for pid in $(programs); do
        [ "$(cat "/proc/$pid/oom_score_adj")" = 0 ]
        grep -E '^NoNewPrivs:\s+1$' "/proc/$pid/status"
        grep -E '^Seccomp:\s+2$' "/proc/$pid/status"
    done
}

a_restart_leaves_machines_alone() {
    local before after
    before=$(programs)
    systemctl restart perch
    after=$(programs)
    [ -n "$before" ] && [ "$before" = "$after" ]
    answers web | grep Hello
}

a_stop_leaves_machines_alone() {
    local before
    before=$(programs)
    systemctl stop perch
    [ "$before" = "$(programs)" ]
    systemctl start perch
    [ "$before" = "$(programs)" ]
    answers web | grep Hello
}

connections_wait_while_server_and_proxy_are_dead() {
    local to proxy
    to=$(address web)
    systemctl kill --kill-who=main --signal=STOP perch
    proxy=$(pgrep -f '^/proc/self/exe proxy' || pgrep -f ' proxy$')
    kill -9 $proxy
    # Nobody can accept now; only the kept listener answers the SYN.
    curl -sS -m 100 "http://[$to]/" > /tmp/answer & local curl=$!
    soon grep -q ':0050 01 ' /proc/net/tcp6
    kill -9 "$(server)"
    wait $curl
    grep Hello /tmp/answer
}

a_crash_of_the_server_is_followed_by_a_new_one() {
    local before
    before=$(programs)
    kill -9 "$(server)"
    soon systemctl is-active perch
    soon answers web
    [ "$before" = "$(programs)" ]
}

a_kill_of_the_whole_unit_spares_machines() {
    local before
    before=$(programs)
    systemctl kill perch
    soon systemctl is-active perch
    soon answers web
    [ "$before" = "$(programs)" ]
}

a_backup_is_restored_over_other_data() {
    perch backup /root/backup --logs
    [ "$(stat -c '%a %U' /root/backup)" = '600 root' ]
    fly apps destroy web --yes
    fails perch restore /root/backup --force
    systemctl stop perch
    perch down
    fails perch restore /root/backup
    perch restore /root/backup --force
    cmp /etc/perch/perch.toml /var/lib/perch/perch.toml.from-backup
    systemctl start perch
    soon are web started
    are quotes stopped
    answers web | grep Hello
    answers quotes | grep Hello
    rm -r /var/lib/perch/before-restore-*
}

members_of_the_group_may_and_others_may_not() {
    useradd -m member; usermod -aG perch member; useradd -m stranger
    su member -c 'fly apps list' | grep web
    fails su stranger -c 'fly apps list'
}

quickstart_runs_beside_the_server() {
    perch quickstart --once
    answers web | grep Hello
}

after_a_reboot_apps_are_as_the_design_says() {
    systemctl is-active perch || soon systemctl is-active perch
    # Autostop and autostart: asleep until the next request. Without autostop: running again.
    are quotes stopped
    soon are web started
    answers web | grep Hello
    answers quotes | grep Hello
}

an_upgrade_of_the_package_keeps_machines() {
    local before
    soon are quotes stopped
    before=$(programs)
    dpkg -i perch.deb
    soon answers web
    [ "$before" = "$(programs)" ]
}

purging_the_package_leaves_nothing() {
    dpkg --purge perch
    [ -z "$(programs)" ]
    [ ! -e /var/lib/perch ] && [ ! -e /etc/perch ] && [ ! -e /usr/bin/fly ]
    [ -z "$(find /usr/share/man/man1 -name 'fly*')" ]
    fails ip link show perch0
    [ -z "$(nft list tables | grep perch)" ]
    [ ! -e /sys/fs/cgroup/perch ] && [ ! -e /sys/fs/cgroup/system.slice/perch.service/machines ]
}

if [ ! -e /root/booted ]; then
    touch /root/booted
    check the_guest_has_cgroup_v2_alone
    check the_package_installs_and_starts_the_server
    check the_unit_is_what_systemd_understands
    check the_unit_is_no_more_exposed_than_promised
    check the_client_is_documented
    check doctor_finds_nothing
    check a_sleeping_app_is_woken
    check machines_are_in_cgroups_of_their_own
    check limits_are_those_of_the_configuration
    check lack_of_memory_is_reported_as_such
    check a_fork_bomb_is_held_and_neighbours_answer
    check a_sleeper_goes_to_swap_and_comes_back
    check a_sleeper_is_woken_without_a_server_and_sleeps_again_with_the_next
    check what_is_synced_to_a_volume_outlives_everything
    check shims_are_apart_from_the_server
    check machines_do_not_inherit_the_servers_privileges
    check a_restart_leaves_machines_alone
    check a_stop_leaves_machines_alone
    check connections_wait_while_server_and_proxy_are_dead
    check a_crash_of_the_server_is_followed_by_a_new_one
    check a_kill_of_the_whole_unit_spares_machines
    check a_backup_is_restored_over_other_data
    check members_of_the_group_may_and_others_may_not
    check quickstart_runs_beside_the_server
    echo "rebooting"
    sync
    systemctl --no-block reboot
else
    check after_a_reboot_apps_are_as_the_design_says
    check an_upgrade_of_the_package_keeps_machines
    check purging_the_package_leaves_nothing
    echo "end"
    systemctl --force --force poweroff
fi
