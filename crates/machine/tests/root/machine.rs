//! Starting, confining, ending and finding Machines.

use std::fs;
use std::os::unix::fs::symlink;

use perch_machine::{ExitCause, Fault, LaunchError, RootFile, Secrets, Volume};

use crate::fixture::{Fixture, Tested, program};

pub(crate) const TESTS: &[crate::Test] = &[
    ("a_machine_is_confined", a_machine_is_confined),
    ("a_user_without_root_holds_nothing", a_user_without_root_holds_nothing),
    ("forbidden_calls_are_refused", forbidden_calls_are_refused),
    ("exit_code_and_output_are_kept", exit_code_and_output_are_kept),
    ("secrets_reach_the_program_and_nothing_else", secrets_reach_the_program_and_nothing_else),
    ("a_program_that_ends_at_once_is_told_from_a_lost_shim", an_end_at_once_is_recorded),
    ("a_program_killed_by_a_signal_says_so", a_program_killed_by_a_signal_says_so),
    ("a_program_that_cannot_run_fails_the_start", a_program_that_cannot_run_fails_the_start),
    ("a_signal_reaches_the_program", a_signal_reaches_the_program),
    ("a_second_run_at_once_is_refused", a_second_run_at_once_is_refused),
    ("each_run_begins_with_the_image", each_run_begins_with_the_image),
    ("files_of_the_platform_stay_inside_the_root", files_of_the_platform_stay_inside_the_root),
    ("a_volume_hides_nothing_of_the_platforms", a_volume_hides_nothing_of_the_platforms),
    ("a_living_machine_is_adopted", a_living_machine_is_adopted),
    ("an_end_that_nobody_saw_is_kept", an_end_that_nobody_saw_is_kept),
    ("a_machine_dies_with_its_shim", a_machine_dies_with_its_shim),
    ("shims_are_in_a_cgroup_of_their_own", shims_are_apart),
    ("who_inherits_a_shim_reaps_it", an_inherited_shim_is_reaped),
    ("a_run_that_nobody_can_name_is_killed", a_run_that_nobody_can_name_is_killed),
    ("a_damaged_exit_record_is_a_lost_run", a_damaged_exit_record_is_a_lost_run),
    ("a_start_clears_away_what_nobody_can_name", a_start_clears_away_what_nobody_can_name),
    ("whatever_a_directory_holds_it_can_be_removed", it_can_be_removed),
    ("a_shim_that_says_nothing_is_killed_by_its_lock", a_silent_shim_is_killed),
    ("a_frozen_machine_can_be_killed", a_frozen_machine_can_be_killed),
    ("a_machine_that_wants_more_than_its_cpu_is_killed_at_once", a_busy_machine_is_killed_at_once),
    ("limits_hold_from_the_first_instruction", limits_hold_from_the_first_instruction),
    ("lack_of_memory_is_told", lack_of_memory_is_told),
    ("listening_sockets_are_listed", listening_sockets_are_listed),
    ("orphans_are_reaped", orphans_are_reaped),
];

fn field(status: &[String], name: &str) -> String {
    let line = status.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

fn a_machine_is_confined(fixture: &Fixture) -> Tested {
    let (_, status) =
        fixture.run(&fixture.spec("exec /bin/busybox cat /proc/self/status /proc/self/uid_map"))?;
    assert_eq!(field(&status, "Seccomp"), "2");
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    // chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, sys_chroot, setfcap
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(field(&status, set), "00000000800405fb", "{set}");
    }
    assert_eq!(field(&status, "CapAmb"), "0000000000000000");
    let map = status.last().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    assert_eq!(map, Some(vec!["0", "3000000", "65536"]));
    Ok(())
}

fn a_user_without_root_holds_nothing(fixture: &Fixture) -> Tested {
    let mut spec = fixture.spec(
        "echo as $(/bin/busybox id -u) >/dev/stdout; exec /bin/busybox cat /proc/self/status",
    );
    spec.user = "app".to_owned();
    let (_, status) = fixture.run(&spec)?;
    assert_eq!(status.first().map(String::as_str), Some("as 1000"));
    assert_eq!(field(&status, "CapEff"), "0000000000000000");
    assert_eq!(field(&status, "CapPrm"), "0000000000000000");
    Ok(())
}

fn forbidden_calls_are_refused(fixture: &Fixture) -> Tested {
    let script = "
        for call in 'mount -t tmpfs x /tmp' 'umount /proc/keys' 'unshare -U true' 'unshare -m true' \\
                    'mknod /tmp/disk b 8 0' 'hostname other' 'chroot / unshare -n true' \\
                    'dd if=/dev/zero of=/proc/sys/kernel/domainname count=1'; do
            /bin/busybox $call 2>/dev/null && echo \"allowed: $call\"
        done
        echo done";
    let (_, lines) = fixture.run(&fixture.spec(script))?;
    assert_eq!(lines, ["done"]);
    Ok(())
}

fn exit_code_and_output_are_kept(fixture: &Fixture) -> Tested {
    let mut spec = fixture.spec("echo $A from $(pwd); echo no end >&2; printf cut; exit 7");
    spec.env = vec![("A".to_owned(), "b c".to_owned())];
    spec.workdir = "/srv/app".to_owned();
    let (record, mut lines) = fixture.run(&spec)?;
    assert_eq!((record.exit_code, record.signal, record.run), (7, None, 1));
    assert_eq!(record.cause, ExitCause::Exited);
    assert!(!record.oom_killed);
    // The two streams are two pipes; only the order within each is certain.
    lines.sort();
    assert_eq!(lines, ["b c from /srv/app", "cut", "no end"]);
    assert!(fixture.cgroups()?.is_empty());
    Ok(())
}

fn secrets_reach_the_program_and_nothing_else(fixture: &Fixture) -> Tested {
    let script =
        "echo $A:$B; /bin/busybox ls /proc/self/fd; echo ready; exec /bin/busybox sleep 1000";
    let mut spec = fixture.spec(script);
    spec.env = vec![("A".to_owned(), "plain".to_owned()), ("P".to_owned(), "p".to_owned())];
    // Longer than a socket's or pipe's buffer.
    let long = "hunter2".repeat(80_000);
    let variables = [("A", "hunter2"), ("B", "x=y"), ("LONG", &long[..100_000]), ("C", "")];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let machine = fixture.launch_with(&spec, &Secrets::new(variables))?;
    fixture.await_line("ready")?;
    let lines = fixture.lines()?;
    assert_eq!(lines.first().map(String::as_str), Some("hunter2:x=y"));
    assert_eq!(lines[1..lines.len() - 1].join(" "), "0 1 2 3", "the last is the listing's own");
    let has = |file: &std::path::Path| {
        fs::read(file).is_ok_and(|it| it.windows(7).any(|part| part == b"hunter2"))
    };
    for name in ["spec.json", "shim.json", "shim.log"] {
        assert!(!has(&fixture.machine_dir().join(name)), "{name}");
    }
    let own = machine.pid();
    let status = fs::read_to_string(format!("/proc/{own}/status"))?;
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).ok_or("no parent")?;
    for pid in [shim, &own.to_string()] {
        for file in ["environ", "cmdline"] {
            assert!(!has(format!("/proc/{pid}/{file}").as_ref()), "{file} of {pid}");
        }
        for fd in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let target = fs::read_link(fd?.path())?;
            assert!(!target.to_string_lossy().contains("memfd"), "{pid} has {target:?}");
        }
    }
    let program = fixture.program_of(&machine)?;
    assert!(has(format!("/proc/{program}/environ").as_ref()), "nobody has it");
    Ok(())
}

/// The launcher may find PID 1 gone and the shim still writing down how: it must wait for the shim.
fn an_end_at_once_is_recorded(fixture: &Fixture) -> Tested {
    let mut spec = fixture.spec("kill -9 $$");
    for run in 1..=30 {
        spec.run = run;
        let record = fixture.run(&spec)?.0;
        assert_eq!((record.signal, record.cause), (Some(9), ExitCause::Exited), "run {run}");
    }
    Ok(())
}

fn a_program_killed_by_a_signal_says_so(fixture: &Fixture) -> Tested {
    let (record, _) = fixture.run(&fixture.spec("kill -9 $$"))?;
    assert_eq!((record.exit_code, record.signal), (137, Some(9)));
    Ok(())
}

fn a_program_that_cannot_run_fails_the_start(fixture: &Fixture) -> Tested {
    let layer = fixture.layer();
    fs::write(layer.join("etc/text"), "no program")?;
    fs::write(layer.join("bin/lost"), "#!/bin/nowhere\n")?;
    fs::set_permissions(
        layer.join("bin/lost"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    for (program, words) in [
        ("missing", "was not found in PATH"),
        ("/bin/missing", "does not exist in the image"),
        ("/etc/text", "is not executable"),
        ("lost", "interpreter"),
    ] {
        let mut spec = fixture.spec("");
        spec.argv = vec![program.to_owned()];
        let error =
            fixture.try_launch(&spec).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(words), "{program}: {error:?}");
    }
    let mut spec = fixture.spec("true");
    spec.user = "ghost".to_owned();
    let error = fixture.try_launch(&spec).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("\"ghost\" is not in the image's /etc/passwd"), "{error}");
    Ok(())
}

fn a_signal_reaches_the_program(fixture: &Fixture) -> Tested {
    let script =
        "trap 'echo bye; exit 3' TERM; echo ready; while :; do /bin/busybox sleep 0.01; done";
    let machine = fixture.launch(&fixture.spec(script))?;
    fixture.await_line("ready")?;
    machine.signal(15)?;
    assert_eq!(fixture.wait(&machine)?.exit_code, 3);
    assert_eq!(fixture.lines()?, ["ready", "bye"]);
    assert!(machine.signal(15).is_err());
    assert!(machine.signal(4711).is_err());
    Ok(())
}

fn a_second_run_at_once_is_refused(fixture: &Fixture) -> Tested {
    let mut spec = fixture.spec("exec /bin/busybox sleep 1000");
    let machine = fixture.launch(&spec)?;
    spec.run = 2;
    let second = fixture.try_launch(&spec);
    assert!(matches!(second, Err(LaunchError::AlreadyRunning { run: 1, .. })));
    machine.kill()?;
    assert_eq!(fixture.wait(&machine)?.signal, Some(9));
    fixture.launch(&spec)?;
    Ok(())
}

fn each_run_begins_with_the_image(fixture: &Fixture) -> Tested {
    let mut spec = fixture
        .spec("/bin/busybox ls /tmp; echo x >/tmp/left; /bin/busybox rm /etc/passwd; echo end");
    for run in 1..=3 {
        spec.run = run;
        assert_eq!(fixture.run(&spec)?.0.exit_code, 0);
    }
    assert_eq!(fixture.lines()?, ["end", "end", "end"]);
    assert!(!fixture.layer().join("tmp/left").exists());
    // Files of former runs go while the next one runs.
    let dir = fixture.machine_dir().join("fs");
    fixture.until("one directory left", || Ok(fs::read_dir(&dir)?.count() == 1))
}

fn files_of_the_platform_stay_inside_the_root(fixture: &Fixture) -> Tested {
    let outside = fixture.dir.join("outside");
    fs::create_dir(&outside)?;
    fs::write(outside.join("victim"), "untouched")?;
    let layer = fixture.layer();
    symlink(&outside, layer.join("linked"))?;
    symlink(outside.join("victim"), layer.join("etc/resolv.conf"))?;
    let mut spec =
        fixture.spec("/bin/busybox cat /etc/resolv.conf; echo; /bin/busybox ls /etc/new/dir");
    let file =
        |path: &str| RootFile { path: path.to_owned(), content: b"ours".to_vec(), mode: 0o644 };
    spec.files = vec![file("/etc/resolv.conf"), file("/etc/new/dir/../dir/file")];
    assert_eq!(fixture.run(&spec)?.1, ["ours", "file"]);
    spec.files = vec![file("/linked/victim")];
    assert!(fixture.try_launch(&spec).is_err());
    assert_eq!(fs::read_to_string(outside.join("victim"))?, "untouched");
    Ok(())
}

/// The image leads the volume's path to where the platform's init is, and the volume has one of the tenant's own.
fn a_volume_hides_nothing_of_the_platforms(fixture: &Fixture) -> Tested {
    let dir = fixture.dir.join("vol_1");
    for place in ["data", "data/.perch", "data/bin"] {
        fs::create_dir_all(dir.join(place))?;
    }
    for place in ["data/init", "data/.perch/init"] {
        fs::write(dir.join(place), program("init")?)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir.join(place), mode)?;
    }
    fs::copy("/bin/busybox", dir.join("data/bin/sh"))?;
    for target in ["/.perch", ".", "etc/.."] {
        let link = fixture.layer().join("data");
        symlink(target, &link)?;
        let mut spec = fixture.spec("echo mine");
        spec.volumes =
            vec![Volume { id: "vol_1".to_owned(), dir: dir.clone(), path: "/data".into() }];
        let Err(LaunchError::Failed { reason, fault, .. }) = fixture.try_launch(&spec) else {
            return Err(format!("it starts with a volume on a link to {target}").into());
        };
        assert_eq!(fault, Fault::Image, "{target}: {reason}");
        assert!(reason.contains("belongs to the platform"), "{target}: {reason}");
        fs::remove_file(link)?;
    }
    Ok(())
}

fn a_living_machine_is_adopted(fixture: &Fixture) -> Tested {
    let machine = fixture.launch(&fixture.spec("exec /bin/busybox sleep 1000"))?;
    let pid = machine.pid();
    drop(machine);
    let machine = fixture.adopt()?.ok_or("nothing was found")?;
    assert_eq!((machine.pid(), machine.run()), (pid, 1));
    assert_eq!(machine.ps()?.len(), 2);
    machine.kill()?;
    assert_eq!(fixture.wait(&machine)?.exit_code, 137);
    assert_eq!(fixture.wait(&machine)?.exit_code, 137);
    Ok(())
}

fn an_end_that_nobody_saw_is_kept(fixture: &Fixture) -> Tested {
    drop(fixture.launch(&fixture.spec("exit 9"))?);
    let file = fixture.machine_dir().join("exit.json");
    fixture.until("the exit record", || Ok(file.exists()))?;
    let machine = fixture.adopt()?.ok_or("nothing was found")?;
    assert_eq!(fixture.wait(&machine)?.exit_code, 9);
    assert!(machine.signal(15).is_err());
    assert!(machine.ps()?.is_empty());
    fixture.remove()?;
    assert!(fixture.adopt()?.is_none());
    Ok(())
}

fn a_machine_dies_with_its_shim(fixture: &Fixture) -> Tested {
    let mut spec = fixture.spec("exec /bin/busybox sleep 1000");
    let machine = fixture.launch(&spec)?;
    let shim = rustix::process::Pid::from_raw(shim_of(&machine)?).ok_or("no parent")?;
    rustix::process::kill_process(shim, rustix::process::Signal::KILL)?;
    let record = fixture.wait(&machine)?;
    assert_eq!(record.cause, ExitCause::ShimLost);
    assert!(fixture.cgroups()?.is_empty());
    spec.run = 2;
    assert_eq!(fixture.launch(&spec)?.run(), 2);
    Ok(())
}

/// The parent of its PID 1.
fn shim_of(machine: &perch_machine::Machine) -> Result<i32, Box<dyn std::error::Error>> {
    let status = fs::read_to_string(format!("/proc/{}/status", machine.pid()))?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:\t")?.parse().ok());
    parent.ok_or_else(|| "no parent".into())
}

fn shims_are_apart(fixture: &Fixture) -> Tested {
    let machine = fixture.launch(&fixture.spec("exec /bin/busybox sleep 1000"))?;
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", shim_of(&machine)?))?;
    let v2 = groups.lines().find_map(|line| line.strip_prefix("0::"));
    // Without v2 there is nothing to be born in.
    assert!(v2.is_none_or(|group| group == "/perch-test/shims"), "{groups}");
    assert_eq!(fixture.adopt()?.map(|found| found.pid()), Some(machine.pid()));
    Ok(())
}

/// As process 1 of a container does.
fn an_inherited_shim_is_reaped(fixture: &Fixture) -> Tested {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let machine = fixture.launch(&fixture.spec("exec /bin/busybox sleep 1000"))?;
    let shim = shim_of(&machine)?;
    machine.kill()?;
    fixture.wait(&machine)?;
    rustix::process::set_child_subreaper(None)?;
    assert!(!std::path::Path::new(&format!("/proc/{shim}")).exists(), "it is left as a zombie");
    Ok(())
}

/// Whether its PID 1 does more than waiting to be reaped.
fn lives(machine: &perch_machine::Machine) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", machine.pid())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// What a power cut, a bad disk and a later version leave of a file.
const DAMAGED: [&str; 4] = ["", "\0\0\0", "{\"run\":", "{\"version\":99,\"run\":1}"];

fn a_run_that_nobody_can_name_is_killed(fixture: &Fixture) -> Tested {
    let mut spec = fixture.spec("exec /bin/busybox sleep 1000");
    for (file, text) in DAMAGED.iter().flat_map(|text| [("spec.json", text), ("shim.json", text)]) {
        let machine = fixture.launch(&spec)?;
        fs::write(fixture.machine_dir().join(file), text)?;
        match fixture.adopt()? {
            // The number of the lost run is known by the specification alone.
            None => assert_eq!(file, "spec.json"),
            Some(found) => {
                assert_eq!((file, found.run()), ("shim.json", spec.run));
                assert_eq!(fixture.wait(&found)?.cause, ExitCause::ShimLost);
            }
        }
        assert_eq!(fixture.cgroups()?, [] as [std::path::PathBuf; 0], "{file} {text:?}");
        fixture.until("its end", || Ok(!lives(&machine)))?;
        spec.run += 1;
    }
    Ok(())
}

fn a_damaged_exit_record_is_a_lost_run(fixture: &Fixture) -> Tested {
    let mut spec = fixture.spec("exit 9");
    for text in DAMAGED {
        let machine = fixture.launch(&spec)?;
        assert_eq!(fixture.wait(&machine)?.exit_code, 9);
        fs::write(fixture.machine_dir().join("exit.json"), text)?;
        let found = fixture.adopt()?.ok_or("nothing was found")?;
        assert_eq!(fixture.wait(&found)?.cause, ExitCause::ShimLost, "{text:?}");
        spec.run += 1;
    }
    Ok(())
}

fn a_start_clears_away_what_nobody_can_name(fixture: &Fixture) -> Tested {
    let mut spec = fixture.spec("exec /bin/busybox sleep 1000");
    for text in DAMAGED {
        let former = fixture.launch(&spec)?;
        for file in ["spec.json", "shim.json", "exit.json"] {
            fs::write(fixture.machine_dir().join(file), text)?;
        }
        spec.run += 1;
        let machine = fixture.launch(&spec)?;
        fixture.until("the former end", || Ok(!lives(&former)))?;
        machine.kill()?;
        fixture.wait(&machine)?;
        spec.run += 1;
    }
    Ok(())
}

fn it_can_be_removed(fixture: &Fixture) -> Tested {
    let dir = fixture.machine_dir();
    for text in DAMAGED {
        let machine = fixture.launch(&fixture.spec("exec /bin/busybox sleep 1000"))?;
        for file in ["spec.json", "shim.json"] {
            fs::write(dir.join(file), text)?;
        }
        fixture.remove()?;
        fixture.until("its end", || Ok(!lives(&machine)))?;
        assert!(!dir.exists(), "{text:?}");
        assert!(fixture.cgroups()?.is_empty(), "{text:?}");
    }
    fs::create_dir_all(dir.join("spec.json"))?;
    assert!(fixture.adopt()?.is_none());
    fixture.remove()?;
    fs::write(&dir, "a file where a directory should be")?;
    fixture.remove()?;
    assert!(!dir.exists());
    Ok(())
}

/// One that hangs before it has made anything: only its lock tells of it.
fn a_silent_shim_is_killed(fixture: &Fixture) -> Tested {
    let dir = fixture.machine_dir();
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("spec.json"), "")?;
    let mut shim = std::process::Command::new("flock")
        .arg("--no-fork")
        .arg(dir.join("lock"))
        .args(["sh", "-c", "echo held; exec sleep 1000"])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let output = shim.stdout.take().ok_or("no output")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)?;
    assert_eq!(line, "held\n");
    let adopted = fixture.adopt();
    shim.kill()?;
    let status = shim.wait()?;
    assert!(adopted?.is_none());
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    Ok(())
}

fn a_frozen_machine_can_be_killed(fixture: &Fixture) -> Tested {
    let machine = fixture.launch(&fixture.spec("exec /bin/busybox sleep 1000"))?;
    let switches = fixture
        .cgroups()?
        .into_iter()
        .flat_map(|dir| [(dir.join("cgroup.freeze"), "1"), (dir.join("freezer.state"), "FROZEN")]);
    let frozen = switches.filter(|(file, _)| file.exists());
    let frozen =
        frozen.map(|(file, value)| fs::write(file, value)).collect::<Result<Vec<_>, _>>()?;
    assert!(!frozen.is_empty());
    machine.kill()?;
    assert_eq!(fixture.wait(&machine)?.signal, Some(9));
    Ok(())
}

/// Its PID 1 would wait for its turn, among many who share a hundredth of a CPU, before it heard of the signal.
fn a_busy_machine_is_killed_at_once(fixture: &Fixture) -> Tested {
    let script = "/bin/busybox mkfifo /tmp/go; i=0; while [ $i -lt 500 ]; do i=$((i+1)); \
                  (: </tmp/go; while :; do :; done) & done; echo all; exec 3<>/tmp/go; wait";
    let mut spec = fixture.spec(script);
    spec.cpu_millis = Some(1_000);
    let machine = fixture.launch(&spec)?;
    fixture.await_line("all")?;
    let quotas = fixture.cgroups()?.into_iter().flat_map(|dir| {
        [(dir.join("cpu.max"), "1000 100000"), (dir.join("cpu.cfs_quota_us"), "1000")]
    });
    let quotas = quotas.filter(|(file, _)| file.exists());
    let lowered =
        quotas.map(|(file, quota)| fs::write(file, quota)).collect::<Result<Vec<_>, _>>()?;
    assert!(!lowered.is_empty());
    machine.kill()?;
    assert_eq!(fixture.wait(&machine)?.signal, Some(9));
    Ok(())
}

fn limits_hold_from_the_first_instruction(fixture: &Fixture) -> Tested {
    let mut spec = fixture.spec("exec /bin/busybox cat /proc/self/cgroup");
    (spec.memory_bytes, spec.cpu_millis, spec.pids_max) = (Some(64 << 20), Some(500), Some(32));
    let (_, lines) = fixture.run(&spec)?;
    let ours = format!("/perch-test/{}", spec.machine);
    let inside = |name: &str| lines.iter().any(|line| line.contains(name) && line.ends_with(&ours));
    assert!(inside("0::"), "{lines:?}");
    for controller in ["memory", "cpu", "pids"] {
        let by_v1 = lines.iter().any(|line| line.contains(&format!(":{controller}:")));
        assert!(!by_v1 || inside(&format!(":{controller}:")), "{controller}: {lines:?}");
    }
    Ok(())
}

fn lack_of_memory_is_told(fixture: &Fixture) -> Tested {
    let mut spec = fixture.spec("exec /bin/busybox tail /dev/zero");
    // Without a limit of swap it would end by itself, at 2 GiB, on a host that has so much.
    (spec.memory_bytes, spec.swap_bytes) = (Some(16 << 20), Some(0));
    let (record, _) = fixture.run(&spec)?;
    assert!(record.oom_killed);
    assert_eq!(record.exit_code, 137);
    Ok(())
}

fn listening_sockets_are_listed(fixture: &Fixture) -> Tested {
    let hello = fixture.layer().join("bin/hello");
    fs::write(&hello, program("hello")?)?;
    fs::set_permissions(&hello, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut spec = fixture.spec("");
    spec.argv = vec!["hello".to_owned()];
    let machine = fixture.launch(&spec)?;
    fixture.until("the listener", || {
        let all = machine.ps()?;
        Ok(all.iter().any(|process| !process.listen_sockets.is_empty()))
    })?;
    let all = machine.ps()?;
    let hello = all.iter().find(|process| process.command == "hello").ok_or("no hello")?;
    assert_eq!(hello.pid, 2);
    assert_eq!(hello.directory, "/");
    let sockets: Vec<_> =
        hello.listen_sockets.iter().map(|s| (s.proto.as_str(), s.address.as_str())).collect();
    assert_eq!(sockets, [("tcp", "0.0.0.0:8080")]);
    machine.signal(2)?;
    assert_eq!(fixture.wait(&machine)?.signal, Some(2));
    Ok(())
}

fn orphans_are_reaped(fixture: &Fixture) -> Tested {
    let script = "(/bin/busybox sleep 0 & ) ; echo started; exec /bin/busybox sleep 1000";
    let machine = fixture.launch(&fixture.spec(script))?;
    fixture.await_line("started")?;
    fixture.until("two processes", || Ok(machine.ps()?.len() == 2))
}
