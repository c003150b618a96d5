//! The same for the memory of those who sleep: the steps on its way to swap, and back with the next request.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Shared, wait_until};

use super::{Step, armed, check_true, walk};
use crate::limits::only;
use crate::memory::{check_awake_rank, check_rank, holder_of, make_swap, wait_paged_out};
use crate::stage::{SOON, check_answer, machine_processes, on};

const PAGING: &str = "auto_stop_after = \"200ms\"\npage_out_after = \"100ms\"\narmed_max = 0\n";
/// More than one call moves.
const HELD_MB: u64 = 5;
/// A sleeper's rank among the kernel's choices.
const SLEEPER: i32 = 999;

#[test]
fn whoever_ends_at_whatever_step_of_paging_sleepers_wake_as_they_were() {
    let Ok(faults) = tempfile::Builder::new().prefix("perch-faults-").tempdir() else {
        panic!("no directory");
    };
    let make = || {
        let mut host = armed(&faults, PAGING)?;
        host.take_turn(Shared::Swap)?;
        make_swap(&host)?;
        Ok(host)
    };
    on(make, |host| walk(host, faults.path(), Step::is_of_paging));
}

pub(super) fn try_step(host: &mut Host, faults: &Path, step: &Step, app: &str) -> Result<()> {
    let (address, held) = holder_of(host, app, HELD_MB)?;
    let awake = Shape::of(host, app)?;
    // Who is woken for the step has slept before it, so that what is found is nobody's first time.
    let id = wait_paged_out(host, app)?.id;
    let file = faults.join(&step.name);
    fs::write(&file, "")?;
    let goes_to_sleep = step.during == "page-out";
    // All that is held must go to swap anew; or little is needed, so that the rest is still there, and until a server is
    // back: it is not the next sleep that makes good what a wake left undone.
    let path = if goes_to_sleep { "/held" } else { "/sleep?ms=1500" };
    let mut call = host.command("curl", &["-gsSm65", &format!("http://[{address}]{path}")]);
    let mut call = call.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait_until("the step to be passed", SOON, || Ok((!file.exists()).then_some(())))?;
    let is_of_server = step.name.starts_with("server.");
    if is_of_server {
        host.await_server_end()?;
        host.start_server()?;
    }
    if is_of_server && goes_to_sleep {
        check_rank(host, &wait_paged_out(host, app)?.id, SLEEPER)?;
    } else if is_of_server {
        check_rank(host, &id, 0)?;
        wait_until("its limit of swap to be as it was", SOON, || {
            let now = Shape::of(host, app)?;
            ensure!(now == awake, "{now:?}, and it was {awake:?}");
            Ok(Some(()))
        })?;
    }
    call.wait()?;
    if !is_of_server {
        // Who is in a Machine whose PID 1 ends is told so; it is the next one that counts.
        host.get(&address, 80, "/")?;
    }
    check_answer(&host.get(&address, 80, "/held")?, &held)?;
    check_awake_rank(host, &address, &id)?;
    let same = Shape::of(host, app)?.pids == awake.pids;
    ensure!(same == is_of_server, "who had to end, or must not, is {awake:?} of before");
    check_true(host, app, false)
}

/// What a sleep must leave as it was: the processes, and the limit of swap where the kernel has one.
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    pids: Vec<i32>,
    swap_limit: Option<String>,
}

impl Shape {
    fn of(host: &Host, app: &str) -> Result<Self> {
        let all = machine_processes(host, &only(host, app)?.id);
        let pids: Vec<i32> = all.iter().map(|it| it.pid).collect();
        let first = pids.first().context("it does not run")?;
        let cgroups = fs::read_to_string(format!("/proc/{first}/cgroup"))?;
        let own = cgroups.lines().find_map(|line| line.strip_prefix("0::/"));
        let path = own.map(|own| Path::new("/sys/fs/cgroup").join(own).join("memory.swap.max"));
        let swap_limit = path.and_then(|path| fs::read_to_string(path).ok());
        Ok(Self { pids, swap_limit })
    }
}
