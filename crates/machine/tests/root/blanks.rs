//! Shims that are spawned before there is a Machine for them.

use std::fs;
use std::path::PathBuf;

use perch_machine::{LaunchSpec, Secrets};
use rustix::process::{Pid, Signal};

use crate::fixture::{Fixture, Tested, blank_processes, parent};

pub(crate) const TESTS: &[crate::Test] = &[
    ("a_blank_becomes_the_machine_s_shim", it_becomes_the_shim),
    ("a_blank_ends_with_its_launcher", it_ends_with_its_launcher),
    ("a_dead_blank_is_passed_over", a_dead_one_is_passed_over),
    ("a_blank_that_hangs_is_passed_over", one_that_hangs_is_passed_over),
    ("what_dead_blanks_left_is_removed", what_dead_ones_left_is_removed),
    ("a_cgroup_that_a_machine_left_is_replaced", a_cgroup_that_is_left_is_replaced),
    ("limits_are_those_of_a_usual_start", limits_are_the_same),
];

const WAITS: &str = "echo ready; exec /bin/busybox sleep 1000";

/// Cgroups of blanks of this very process, by the numbers in their names.
fn cgroups_of(blanks: &[i32]) -> Vec<PathBuf> {
    let roots = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let dirs = roots.flat_map(|root| fs::read_dir(root.path().join("perch-test")));
    let names = dirs.flatten().flatten().filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        blanks.iter().any(|pid| name.starts_with(&format!("blank-{pid}-")))
    });
    names.map(|entry| entry.path()).collect()
}

fn kill(pid: i32, signal: Signal) -> Tested {
    Ok(rustix::process::kill_process(Pid::from_raw(pid).ok_or("no process")?, signal)?)
}

fn is_hybrid() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let has = |kind: &str| mounts.lines().any(|line| line.contains(kind));
    has(" - cgroup2 ") && has(" - cgroup cgroup ")
}

fn it_becomes_the_shim(fixture: &Fixture) -> Tested {
    let stock = fixture.stock(1)?;
    let blanks = fixture.blanks();
    let [shim] = blanks[..] else { return Err(format!("blanks: {blanks:?}").into()) };
    assert_eq!(cgroups_of(&blanks).is_empty(), !is_hybrid());
    let machine = fixture.launch_from(&fixture.spec(WAITS), &Secrets::default(), &stock)?;
    assert_eq!(parent(machine.pid()), Some(shim));
    assert!(cgroups_of(&blanks).is_empty() && blank_processes().is_empty(), "something is left");
    let words = fs::read(format!("/proc/{shim}/cmdline"))?;
    let words: Vec<_> = words.split(|byte| *byte == 0).skip(1).collect();
    let dir = fixture.machine_dir();
    assert_eq!(words, [b"shim", dir.as_os_str().as_encoded_bytes(), b""]);
    // All that counts as the Machine's is the Machine's.
    for group in fixture.cgroups()? {
        let inside = fs::read_to_string(group.join("cgroup.procs"))?;
        assert_eq!(inside.lines().count(), 2, "{}: {inside}", group.display());
    }
    let error = fixture.launch_from(&fixture.spec(WAITS), &Secrets::default(), &stock).err();
    assert!(error.is_some_and(|error| error.to_string().contains("already running")));
    machine.freeze()?;
    fixture.block_on(machine.frozen())?;
    machine.thaw()?;
    kill(shim, Signal::KILL)?;
    fixture.wait(&machine)?;
    fixture.until("its end", || Ok(!fs::exists(format!("/proc/{}", machine.pid()))?))?;
    assert!(fixture.cgroups()?.is_empty());
    Ok(())
}

fn it_ends_with_its_launcher(fixture: &Fixture) -> Tested {
    let stock = fixture.stock(2)?;
    let blanks = fixture.blanks();
    assert_eq!(blanks.len(), 2);
    drop(stock);
    fixture.until("their end", || Ok(blank_processes().is_empty()))?;
    assert!(cgroups_of(&blanks).is_empty(), "{:?}", cgroups_of(&blanks));
    Ok(())
}

/// The shim, or the process that it has parked; before the start, or unseen.
fn a_dead_one_is_passed_over(fixture: &Fixture) -> Tested {
    let mut spec = fixture.spec("exit 7");
    for is_shim in [true, false] {
        let stock = fixture.stock(2)?;
        let shims = fixture.blanks();
        let parked = blank_processes().into_iter().filter(|pid| !shims.contains(pid));
        let victims = if is_shim { shims.clone() } else { parked.collect() };
        // Both, unless there is nobody to kill.
        victims.iter().try_for_each(|pid| kill(*pid, Signal::KILL))?;
        let machine = fixture.launch_from(&spec, &Secrets::default(), &stock)?;
        assert_eq!(fixture.wait(&machine)?.exit_code, 7, "shim: {is_shim}");
        spec.run += 1;
        // Where nobody is parked, one is left.
        drop(stock);
        // The next one that is made clears up.
        fixture.until("their end", || Ok(blank_processes().is_empty()))?;
        drop(fixture.stock(1)?);
        assert!(cgroups_of(&shims).is_empty(), "{:?}", cgroups_of(&shims));
    }
    Ok(())
}

/// The parked process is stopped: the start is given up late, and begun anew.
fn one_that_hangs_is_passed_over(fixture: &Fixture) -> Tested {
    let stock = fixture.stock(1)?;
    let shims = fixture.blanks();
    let Some(parked) = blank_processes().into_iter().find(|pid| !shims.contains(pid)) else {
        return Ok(());
    };
    kill(parked, Signal::STOP)?;
    let machine = fixture.launch_from(&fixture.spec("exit 7"), &Secrets::default(), &stock)?;
    assert_eq!(fixture.wait(&machine)?.exit_code, 7);
    fixture.until("its end", || Ok(blank_processes().is_empty()))
}

fn what_dead_ones_left_is_removed(fixture: &Fixture) -> Tested {
    let living = fixture.stock(1)?;
    let shims = fixture.blanks();
    let kept = cgroups_of(&shims);
    let left: Vec<_> = kept.iter().map(|dir| dir.with_file_name("blank-0-0")).collect();
    left.iter().try_for_each(fs::create_dir)?;
    drop(fixture.stock(0)?);
    assert!(!left.iter().any(|dir| dir.exists()), "they are left");
    assert_eq!(cgroups_of(&shims), kept, "those of a living one are gone");
    drop(living);
    Ok(())
}

fn a_cgroup_that_is_left_is_replaced(fixture: &Fixture) -> Tested {
    let mut spec = fixture.spec("exit 7");
    spec.pids_max = Some(16);
    let stock = fixture.stock(1)?;
    for dir in cgroups_of(&fixture.blanks()) {
        fs::create_dir(dir.with_file_name(&spec.machine))?;
    }
    let machine = fixture.launch_from(&spec, &Secrets::default(), &stock)?;
    assert_eq!(fixture.wait(&machine)?.exit_code, 7);
    assert!(fixture.cgroups()?.is_empty());
    Ok(())
}

fn limits_are_the_same(fixture: &Fixture) -> Tested {
    let mut spec = fixture.spec(WAITS);
    (spec.memory_bytes, spec.swap_bytes) = (Some(64 << 20), Some(0));
    (spec.cpu_millis, spec.cpu_shares, spec.pids_max) = (Some(10), Some(64), Some(3));
    let usual = read_limits(fixture, &spec, 0)?;
    assert!(usual.len() >= 4, "{usual:?}");
    spec.run += 1;
    assert_eq!(read_limits(fixture, &spec, 1)?, usual);
    Ok(())
}

const LIMITS: [&str; 9] = [
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "cpu.cfs_quota_us",
    "cpu.shares",
    "pids.max",
    "memory.max",
    "memory.swap.max",
    "cpu.max",
    "cpu.weight",
];

fn read_limits(
    fixture: &Fixture,
    spec: &LaunchSpec,
    blanks: usize,
) -> Result<Vec<(PathBuf, String)>, Box<dyn std::error::Error>> {
    let stock = fixture.stock(blanks)?;
    let machine = fixture.launch_from(spec, &Secrets::default(), &stock)?;
    let mut found = Vec::new();
    for group in fixture.cgroups()? {
        let files = LIMITS.iter().map(|name| group.join(name)).filter(|file| file.exists());
        for file in files {
            let text = fs::read_to_string(&file)?;
            found.push((file, text));
        }
    }
    found.sort();
    machine.kill()?;
    fixture.wait(&machine)?;
    Ok(found)
}
