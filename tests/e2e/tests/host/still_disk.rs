//! File systems that are held still: who writes to one waits in the kernel, and no signal ends that.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Network, Process, holds_for, wait_until};
use rustix::process::{Pid, Signal, kill_process};

use crate::limits::{in_state, only};
use crate::stage::{
    AWAKE, SOON, check_answer, machine_processes, on, one_machine_of, private_app, shell_image,
};
use crate::volumes;

/// Writes all the time, and answers; a copy of what it has takes a moment.
const WRITER: &str = "busybox dd if=/dev/zero of=/data/much bs=1M count=200; while :; do echo x >>/data/log; busybox sleep 0.05; done & \
    exec busybox httpd -f -p 8081 -h /data";

const SERVICE: &str = "\
kill_timeout = '1s'

[http_service]
  internal_port = 8081
  force_https = false
  auto_stop_machines = \"suspend\"
  auto_start_machines = true
  start_timeout = \"1s\"

[mounts]
  source = 'data'
  destination = '/data'
";

/// A volume on which nobody can write; goes on when dropped.
struct Still(File);

impl Still {
    /// The volume of a Machine, below `/data` there.
    fn of(host: &Host, id: &str) -> Result<Self> {
        let pid = machine_processes(host, id).first().context("it does not run")?.pid;
        let still = Self(File::open(format!("/proc/{pid}/root/data"))?);
        ensure!(still.run("--freeze")?, "the volume could not be frozen");
        Ok(still)
    }

    /// By the descriptor: the path is gone with the Machine's processes.
    fn run(&self, what: &str) -> Result<bool> {
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd());
        Ok(Command::new("fsfreeze").args([what, &path]).status()?.success())
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        if !self.run("--unfreeze").unwrap_or(false) {
            eprintln!("the volume of a test stays frozen: who writes to it hangs until a reboot");
        }
    }
}

#[test]
fn who_cannot_even_be_killed_is_stopped_destroyed_and_costs_nobody_else_anything() {
    on(
        || Host::start_with(Network::Open, "auto_stop_after = \"60s\"\n"),
        |host| {
            let neighbour = private_app(host, "quiet", AWAKE)?;
            let answers = || -> Result<()> {
                let began = Instant::now();
                check_answer(&host.get(&neighbour, 80, "/")?, "Hello")?;
                ensure!(began.elapsed() < Duration::from_secs(10), "the neighbour waited");
                Ok(())
            };
            let address = writer(host)?;
            let id = in_state(host, "writer", "started")?.id;
            let still = Still::of(host, &id)?;
            wait_until("its wait", SOON, || {
                Ok(machine_processes(host, &id).iter().any(|it| it.state == 'D').then_some(()))
            })?;
            let asked = host.fly(&["machine", "suspend", &id, "-a", "writer"])?;
            // AS-54: where freezing is impossible it is a stop, and the event says so.
            let machine = wait_until("its stop", SOON, || {
                let machine = only(host, "writer")?;
                Ok((machine.state == "stopping").then_some(machine))
            })?;
            let events = machine.value["events"].to_string();
            ensure!(events.contains("it did not freeze in time"), "{asked}, {events}");
            answers()?;
            let told = host.get(&address, 80, "/")?;
            ensure!(told.status == 503 && told.body.contains("PM03"), "{told:?}");
            host.fly(&["machine", "destroy", "--force", &id, "-a", "writer"])?.ok()?;
            answers()?;
            ensure!(stuck(host, &id).is_some(), "it was not unkillable");
            drop(still);
            wait_until("its end", SOON, || {
                let all_gone = machine_processes(host, &id).is_empty()
                    && host.machines("writer")?.is_empty()
                    && !host.data_dir().join("machines").join(&id).exists();
                Ok(all_gone.then_some(()))
            })?;
            host.fly(&["apps", "destroy", "writer", "-y"])?.ok()?;
            volumes::no_loops(host)?;
            answers()
        },
    );
}

fn stuck(host: &Host, id: &str) -> Option<Process> {
    machine_processes(host, id).into_iter().find(|it| it.state == 'D')
}

#[test]
fn a_machine_does_not_fall_asleep_while_its_volume_is_copied() {
    on(
        || Host::start_with(Network::Open, "auto_stop_after = \"1s\"\n"),
        |host| {
            if clones_files(host)? {
                println!("skipped: this disk clones files, so that a copy holds nobody still");
                return Ok(());
            }
            let address = writer(host)?;
            let id = only(host, "writer")?.id;
            let volume = volumes::volume(host, "writer", "data")?;
            wait_until("a copy to see", SOON, || {
                let tried = copy_and_look(host, &address, &volume)?;
                Ok((tried != Tried::TooLate).then_some(()))
            })?;
            let machine = in_state(host, "writer", "suspended")?;
            ensure!(machine.id == id && machine.events("stop") == 0, "{machine:?}");
            Ok(())
        },
    );
}

#[derive(PartialEq, Eq)]
enum Tried {
    Seen,
    /// The copy ended before it could be halted.
    TooLate,
}

fn clones_files(host: &Host) -> Result<bool> {
    let (from, to) = (host.dir().join("clone-from"), host.dir().join("clone-to"));
    std::fs::write(&from, [1; 4096])?;
    let args = ["--reflink=always", "--"];
    Ok(Command::new("cp").args(args).args([from, to]).output()?.status.success())
}

/// Makes a snapshot that takes longer than the Machine may be idle.
fn copy_and_look(host: &Host, address: &str, volume: &str) -> Result<Tried> {
    let args = ["vol", "snapshots", "create", volume, "-a", "writer"];
    std::thread::scope(|scope| {
        check_answer(&host.get(address, 80, "/log")?, "x")?;
        let copy = scope.spawn(|| host.fly(&args));
        let holder = wait_until("who holds it still", SOON, || {
            let found = holder(host);
            Ok(found.map(Some).or_else(|| copy.is_finished().then_some(None)))
        })?;
        let held = holder.map_or(Ok(Tried::TooLate), |holder| check_held(host, &holder));
        let copied = copy.join().map_err(|_| anyhow::anyhow!("the copy panicked"))?;
        copied?.ok()?;
        held
    })
}

/// While the copy cannot end, its Machine stays awake.
fn check_held(host: &Host, holder: &Process) -> Result<Tried> {
    let pid = Pid::from_raw(holder.pid).context("0 is no process")?;
    if kill_process(pid, Signal::STOP).is_err() {
        return Ok(Tried::TooLate);
    }
    let is_halted = || host.processes().iter().any(|it| it.pid == holder.pid && it.state == 'T');
    let held =
        match wait_until("its halt", Duration::from_secs(1), || Ok(is_halted().then_some(()))) {
            Ok(()) => holds_for("it is awake", Duration::from_millis(1800), || {
                Ok(only(host, "writer")?.state == "started")
            })
            .map(|()| Tried::Seen),
            Err(_ended) => Ok(Tried::TooLate),
        };
    // It may have ended.
    kill_process(pid, Signal::CONT).ok();
    held
}

fn holder(host: &Host) -> Option<Process> {
    let is_holder = |it: &Process| it.args.get(1).is_some_and(|word| word == "freeze");
    host.processes().into_iter().find(|it| it.state == 'S' && is_holder(it))
}

/// Deploys an app that writes all the time; its address.
fn writer(host: &Host) -> Result<String> {
    let image = shell_image(host, "writer", WRITER)?;
    one_machine_of(host, "writer", &image, SERVICE)
}
