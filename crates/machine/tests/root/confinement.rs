//! What a program finds around itself, read back from real Machines.

use std::fs;
use std::path::Path;

use perch_machine::LaunchSpec;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::fixture::{Fixture, Tested};

pub(crate) const TESTS: &[crate::Test] = &[
    ("nothing_open_on_the_host_comes_along", nothing_open_on_the_host_comes_along),
    ("what_tells_about_the_host_is_hidden", what_tells_about_the_host_is_hidden),
    ("what_changes_the_host_is_read_only", what_changes_the_host_is_read_only),
    ("dev_holds_what_every_program_needs_and_no_more", dev_holds_what_every_program_needs),
    ("a_protected_server_does_not_protect_its_machines", a_protected_server_protects_itself_only),
    ("a_crash_writes_no_core_file", a_crash_writes_no_core_file),
    ("a_program_may_have_many_files_open_and_else_what_the_server_may", a_programs_limits),
    ("the_program_cannot_reach_into_init", the_program_cannot_reach_into_init),
    ("every_namespace_but_time_is_the_machines_own", every_namespace_is_the_machines_own),
    ("dockers_refusals_are_ours", dockers_refusals_are_ours),
    ("a_servers_strict_umask_is_not_its_machines", a_servers_umask_is_its_own),
];

/// What each descriptor of a process leads to.
fn descriptors(pid: i32) -> std::io::Result<Vec<String>> {
    let mut links = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let target = fs::read_link(entry.path())?.to_string_lossy().into_owned();
        let kind = target.split(':').next().unwrap_or_default();
        links.push(format!("{} {kind}", entry.file_name().to_string_lossy()));
    }
    links.sort();
    Ok(links)
}

fn children(pid: i32) -> std::io::Result<Vec<i32>> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

fn nothing_open_on_the_host_comes_along(fixture: &Fixture) -> Tested {
    // One that the launching process forgot to mark, as a library might.
    let forgotten = fs::File::open(fixture.layer())?;
    rustix::io::fcntl_setfd(&forgotten, rustix::io::FdFlags::empty())?;
    let machine = fixture.launch(&fixture.spec("echo ready; exec /bin/busybox sleep 1000"))?;
    fixture.await_line("ready")?;
    assert_eq!(descriptors(machine.pid())?, ["0 /dev/null", "1 pipe", "2 pipe", "3 socket"]);
    let program = *children(machine.pid())?.first().ok_or("no program")?;
    assert_eq!(descriptors(program)?, ["0 /dev/null", "1 pipe", "2 pipe"]);
    for pid in [machine.pid(), program] {
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd"))?, Path::new("/"));
    }
    Ok(machine.kill()?)
}

fn what_tells_about_the_host_is_hidden(fixture: &Fixture) -> Tested {
    let script = "
        for path in /proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats \
                    /proc/sched_debug /proc/scsi /proc/timer_list /proc/timer_stats \
                    /sys/devices/virtual/powercap /sys/firmware; do
            [ -d $path ] && [ -n \"$(/bin/busybox ls $path)\" ] && echo \"lists: $path\"
            [ -e $path ] && [ ! -d $path ] && [ -n \"$(/bin/busybox head -c 1 $path)\" ] && echo \"reads: $path\"
        done
        echo done";
    assert_eq!(fixture.run(&fixture.spec(script))?.1, ["done"]);
    // Two that every kernel has were there to be hidden.
    assert!(fs::metadata("/proc/interrupts").is_ok() && fs::metadata("/proc/keys").is_ok());
    Ok(())
}

fn what_changes_the_host_is_read_only(fixture: &Fixture) -> Tested {
    let script = "
        for path in /proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger /sys; do
            [ -e $path ] || continue
            how=$(/bin/busybox awk -v p=$path '$5 == p { how = $6 } END { print how }' /proc/self/mountinfo)
            case \"$how\" in ro,*) ;; *) echo \"not read-only: $path: $how\" ;; esac
        done
        echo x 2>/dev/null >/proc/sysrq-trigger && echo triggered
        /bin/busybox grep ' /proc ' /proc/self/mountinfo | /bin/busybox grep -vq 'nosuid,nodev,noexec' && echo proc
        /bin/busybox grep -q cgroup /proc/self/mountinfo && echo cgroups
        echo done";
    assert_eq!(fixture.run(&fixture.spec(script))?.1, ["done"]);
    Ok(())
}

fn dev_holds_what_every_program_needs(fixture: &Fixture) -> Tested {
    let script = "cd /dev; /bin/busybox stat -c '%n %F' *; echo x >/dev/full || echo full";
    let mut lines = fixture.run(&fixture.spec(script))?.1;
    lines.retain(|line| !line.contains("No space"));
    lines.sort();
    let expected = [
        "fd symbolic link",
        "full",
        "full character special file",
        "mqueue directory",
        "null character special file",
        "ptmx symbolic link",
        "pts directory",
        "random character special file",
        "shm directory",
        "stderr symbolic link",
        "stdin symbolic link",
        "stdout symbolic link",
        "tty character special file",
        "urandom character special file",
        "zero character special file",
    ];
    let known: Vec<_> = lines.iter().filter(|line| *line != "core symbolic link").collect();
    assert_eq!(known, expected.iter().collect::<Vec<_>>());
    Ok(())
}

fn a_protected_server_protects_itself_only(fixture: &Fixture) -> Tested {
    const OWN: &str = "/proc/self/oom_score_adj";
    let before = fs::read_to_string(OWN)?;
    // Less protection is handed on; more needs a right to set, which not every root has.
    for (own, machines) in [("300", "300"), ("-500", "0")] {
        if fs::write(OWN, own).is_err() {
            continue;
        }
        let mut spec = fixture.spec("exec /bin/busybox cat /proc/1/oom_score_adj");
        spec.run = if own == "300" { 1 } else { 2 };
        let outcome = fixture.run(&spec);
        fs::write(OWN, before.trim())?;
        assert_eq!(outcome?.1.last().map(String::as_str), Some(machines));
    }
    Ok(())
}

fn a_crash_writes_no_core_file(fixture: &Fixture) -> Tested {
    let (record, lines) = fixture.run(&fixture.spec("ulimit -S -c; kill -SEGV $$"))?;
    assert_eq!(lines, ["0"]);
    assert_eq!((record.exit_code, record.signal), (139, Some(11)), "{record:?}");
    let root = fixture.machine_dir().join("fs/1/upper");
    let left = fs::read_dir(root)?.flatten().map(|entry| entry.file_name());
    assert!(!left.into_iter().any(|name| name.to_string_lossy().starts_with("core")));
    Ok(())
}

fn a_programs_limits(fixture: &Fixture) -> Tested {
    const MOST: u64 = 65_536;
    let before = getrlimit(Resource::Nofile);
    let open_files = before.maximum.map_or(MOST, |hard| hard.min(MOST)).to_string();
    // The soft limit does not come along.
    setrlimit(Resource::Nofile, Rlimit { current: Some(1_000), ..before })?;
    let spec = fixture.spec("exec /bin/busybox cat /proc/self/limits");
    let checked = check_limits(fixture, &spec, &open_files);
    setrlimit(Resource::Nofile, before)?;
    checked
}

fn check_limits(fixture: &Fixture, spec: &LaunchSpec, open_files: &str) -> Tested {
    let own = fs::read_to_string("/proc/self/limits")?;
    let (_, lines) = fixture.run(spec)?;
    assert_eq!(lines.len(), own.lines().count(), "{lines:?}");
    for (line, own) in lines.iter().zip(own.lines()) {
        let [found, own] = [line.as_str(), own].map(|it| it.split_ascii_whitespace().collect());
        let (found, own): (Vec<&str>, Vec<&str>) = (found, own);
        match &found[..3] {
            ["Max", "open", "files"] => assert_eq!(found[3..5], [open_files; 2], "{line}"),
            ["Max", "core", "file"] => assert_eq!((found[4], found[5]), ("0", own[5]), "{line}"),
            _ => assert_eq!(found, own),
        }
    }
    Ok(())
}

fn the_program_cannot_reach_into_init(fixture: &Fixture) -> Tested {
    let script = "
        for file in mem environ maps; do
            /bin/busybox head -c 1 /proc/1/$file >/dev/null 2>&1 && echo \"reads $file\"
        done
        /bin/busybox ls /proc/1/root/ >/dev/null 2>&1 && echo 'enters the root'
        /bin/busybox readlink /proc/1/fd/3 && echo 'follows descriptors'
        /bin/busybox head -c 1 /proc/self/environ >/dev/null && echo 'itself is open'
        /bin/busybox tr '\\0' ' ' </proc/1/cmdline";
    let lines = fixture.run(&fixture.spec(script))?.1;
    assert_eq!(lines.first().map(String::as_str), Some("itself is open"), "{lines:?}");
    assert!(lines.get(1).is_some_and(|line| line.starts_with("/.perch/init /bin/sh")));
    Ok(())
}

fn every_namespace_is_the_machines_own(fixture: &Fixture) -> Tested {
    let machine = fixture.launch(&fixture.spec("exec /bin/busybox sleep 1000"))?;
    let of = |pid: &str, name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}"));
    let inside = machine.pid().to_string();
    for name in ["ipc", "mnt", "net", "pid", "user", "uts"] {
        assert_ne!(of(&inside, name)?, of("self", name)?, "{name}");
    }
    assert_eq!(of(&inside, "time")?, of("self", "time")?);
    Ok(machine.kill()?)
}

/// The filter is asked, not only the capabilities: these need none, or are refused although the Machine is root.
fn dockers_refusals_are_ours(fixture: &Fixture) -> Tested {
    let script = "
        /bin/busybox dmesg >/dev/null 2>&1 && echo 'reads the kernel log'
        /bin/busybox date -s 2030-01-01 2>&1 | /bin/busybox grep -q 'not permitted' || echo 'sets the clock'
        /bin/busybox unshare -r true 2>/dev/null && echo 'makes a user namespace'
        /bin/busybox uname -n";
    assert_eq!(fixture.run(&fixture.spec(script))?.1, ["test"]);
    Ok(())
}

/// A service manager, or the server itself, may forbid that others read what it makes.
fn a_servers_umask_is_its_own(fixture: &Fixture) -> Tested {
    let strict = rustix::fs::Mode::from_raw_mode(0o077);
    let former = rustix::process::umask(strict);
    let installed = perch_machine::install_init(&fixture.dir.join("another-init"), b"init");
    let mut spec = fixture.spec("umask; /bin/busybox ls / | /bin/busybox grep -x bin");
    spec.user = "1000".to_owned();
    let ran = fixture.run(&spec);
    rustix::process::umask(former);
    assert_eq!(ran?.1, ["0022", "bin"]);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(installed?)?.permissions());
    assert_eq!(mode & 0o777, 0o755);
    Ok(())
}
