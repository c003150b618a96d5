//! Runs that are made ready ahead.

use std::fs::{self, File};
use std::os::fd::AsFd;

use perch_machine::{Armed, LaunchError, LaunchSpec, Machine, Secrets, Volume};
use rustix::process::{Pid, Signal};

use crate::fixture::{Fixture, Tested};

pub(crate) const TESTS: &[crate::Test] = &[
    ("what_is_armed_waits_and_starts_when_told", it_waits_and_starts_when_told),
    ("what_is_armed_is_no_run_and_leaves_no_trace", it_is_no_run_and_leaves_no_trace),
    ("what_is_armed_is_for_one_start_only", it_is_for_one_start_only),
    ("a_usual_start_waits_for_the_end_of_what_was_armed", a_usual_start_waits_for_its_end),
    ("what_was_armed_and_does_not_end_is_killed", what_does_not_end_is_killed),
    ("what_died_while_it_waited_is_started_anew", what_died_is_started_anew),
    ("limits_hold_for_what_was_armed", limits_hold),
];

/// A second run that is armed, after a first one that left its record.
fn armed(
    fixture: &Fixture,
    script: &str,
) -> Result<(LaunchSpec, Armed), Box<dyn std::error::Error>> {
    fixture.run(&fixture.spec("exit 7"))?;
    let spec = LaunchSpec { run: 2, ..fixture.spec(script) };
    let armed = fixture.arm(&spec, &Secrets::default())?;
    Ok((spec, armed))
}

async fn start(armed: Armed) -> Result<Option<Machine>, LaunchError> {
    let Some(going) = armed.go()? else { return Ok(None) };
    going.started().await
}

/// Process ids of the shim that waits and of its init.
fn shim_and_init(fixture: &Fixture) -> Result<(Pid, Pid), Box<dyn std::error::Error>> {
    let groups = fixture.cgroups()?;
    let pids = groups.iter().map(|dir| fs::read_to_string(dir.join("cgroup.procs")));
    let pids = pids.collect::<Result<Vec<_>, _>>()?.concat();
    let init = pids.lines().find_map(|line| Pid::from_raw(line.parse().ok()?)).ok_or("no init")?;
    let status = fs::read_to_string(format!("/proc/{}/status", init.as_raw_nonzero()))?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:\t")?.parse().ok());
    Ok((parent.and_then(Pid::from_raw).ok_or("no shim")?, init))
}

fn it_waits_and_starts_when_told(fixture: &Fixture) -> Tested {
    let script = "echo $KEY; /bin/busybox cat /run/file; exec /bin/busybox sleep 1000";
    let spec = fixture.spec(script);
    let content = b"in memory\n".to_vec();
    let file = perch_machine::RootFile { path: "/run/file".into(), content, mode: 0o644 };
    let secrets = Secrets::new(vec![("KEY".into(), "value".into())]).with_files(vec![file]);
    let armed = fixture.arm(&spec, &secrets)?;
    let (_, init) = shim_and_init(fixture)?;
    let children = format!("/proc/{0}/task/{0}/children", init.as_raw_nonzero());
    assert_eq!(fs::read_to_string(children)?, "", "the program runs");
    assert!(armed.waits() && fixture.lines()?.is_empty());
    let machine = fixture.block_on(start(armed))?.ok_or("it was gone")?;
    assert_eq!((machine.pid(), machine.run()), (init.as_raw_nonzero().get(), 1));
    fixture.await_line("value")?;
    fixture.await_line("in memory")?;
    // Who looks now finds a run like any other.
    assert_eq!(fixture.adopt()?.map(|found| found.pid()), Some(machine.pid()));
    for name in ["armed.json", "armed.lock"] {
        assert!(!fixture.machine_dir().join(name).exists(), "{name} is left");
    }
    machine.kill()?;
    assert_eq!(fixture.wait(&machine)?.signal, Some(9));
    assert!(fixture.cgroups()?.is_empty());
    Ok(())
}

fn it_is_no_run_and_leaves_no_trace(fixture: &Fixture) -> Tested {
    let (_, armed) = armed(fixture, "echo never")?;
    let dir = fixture.machine_dir();
    assert!(!perch_machine::lives(&dir)?, "it counts as a run");
    drop(armed);
    // As a later server does.
    let found = fixture.adopt()?.ok_or("the former run is forgotten")?;
    assert_eq!((found.run(), fixture.wait(&found)?.exit_code), (1, 7));
    assert!(fixture.cgroups()?.is_empty(), "it lives");
    for name in ["armed.json", "armed.lock"] {
        assert!(!dir.join(name).exists(), "{name} is left");
    }
    assert!(fixture.lines()?.is_empty(), "the program was executed");
    Ok(())
}

fn it_is_for_one_start_only(fixture: &Fixture) -> Tested {
    let (_, armed) = armed(fixture, "echo")?;
    let spec = armed.spec().clone();
    let none = Secrets::default();
    assert!(armed.is_for(&spec, &none));
    let changed = |change: fn(&mut LaunchSpec)| {
        let mut spec = spec.clone();
        change(&mut spec);
        !armed.is_for(&spec, &none)
    };
    assert!(
        changed(|spec| spec.run = 3) && changed(|spec| spec.env.push(("A".into(), "b".into())))
    );
    assert!(changed(|spec| spec.memory_bytes = Some(1)) && changed(|spec| spec.uid_base += 1));
    assert!(!armed.is_for(&spec, &Secrets::new(vec![("A".into(), "b".into())])));
    fixture.block_on(armed.disarm());
    assert!(fixture.cgroups()?.is_empty(), "it lives after its end");
    let volume = Volume { id: "v".into(), dir: fixture.dir.clone(), path: "/data".into() };
    let refused = fixture.arm(&LaunchSpec { volumes: vec![volume], ..spec }, &none);
    assert!(refused.is_err(), "a volume is mounted where nobody runs");
    Ok(())
}

fn a_usual_start_waits_for_its_end(fixture: &Fixture) -> Tested {
    let (spec, armed) = armed(fixture, "echo once")?;
    drop(armed);
    let (record, lines) = fixture.run(&spec)?;
    assert_eq!((record.run, record.exit_code, lines), (2, 0, vec!["once".to_owned()]));
    Ok(())
}

fn what_does_not_end_is_killed(fixture: &Fixture) -> Tested {
    let (spec, armed) = armed(fixture, "echo once")?;
    let (shim, init) = shim_and_init(fixture)?;
    rustix::process::kill_process(shim, Signal::STOP)?;
    drop(armed);
    assert_eq!(fixture.run(&spec)?.1, ["once"]);
    for pid in [shim, init] {
        let gone = || Ok(!fs::exists(format!("/proc/{}", pid.as_raw_nonzero()))?);
        fixture.until("what hung to be gone", gone)?;
    }
    Ok(())
}

fn what_died_is_started_anew(fixture: &Fixture) -> Tested {
    for who in ["shim", "init"] {
        let (spec, armed) = armed(fixture, "echo once")?;
        let (shim, init) = shim_and_init(fixture)?;
        rustix::process::kill_process(if who == "shim" { shim } else { init }, Signal::KILL)?;
        fixture.until("its death to be known", || Ok(!armed.waits()))?;
        assert!(fixture.block_on(start(armed))?.is_none(), "{who}: it started");
        let lines = fixture.lines()?.len();
        assert_eq!(fixture.run(&spec)?.0.exit_code, 0, "{who}");
        assert_eq!(fixture.lines()?.len(), lines + 1, "{who}: not executed once");
    }
    Ok(())
}

fn limits_hold(fixture: &Fixture) -> Tested {
    let script =
        "(/bin/busybox sleep 9 & /bin/busybox sleep 9 & /bin/busybox sleep 9 &) || echo refused";
    let spec = LaunchSpec { pids_max: Some(3), ..fixture.spec(script) };
    let armed = fixture.arm(&spec, &Secrets::default())?;
    let machine = fixture.block_on(start(armed))?.ok_or("it was gone")?;
    fixture.await_line("/bin/sh: can't fork: Resource temporarily unavailable")?;
    fixture.wait(&machine)?;
    Ok(())
}

impl Fixture {
    fn arm(
        &self,
        spec: &LaunchSpec,
        secrets: &Secrets,
    ) -> Result<Armed, Box<dyn std::error::Error>> {
        let netns = File::open(self.netns())?;
        let spec = LaunchSpec { layers: self.own_layers(spec), ..spec.clone() };
        Ok(self.block_on(perch_machine::arm(&spec, netns.as_fd(), secrets))?)
    }
}
