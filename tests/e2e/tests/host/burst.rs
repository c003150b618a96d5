//! A thousand requests at once to an app that sleeps.

use std::net::{IpAddr, SocketAddr};
use std::sync::Barrier;
use std::time::Duration;

use anyhow::{Result, ensure};
use perch_testkit::{Host, get};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::stage::{SNIPPET, on_host, private_app, wait_asleep};

const REQUESTS: usize = 1000;

/// Requests that all are in flight at once: an instant answer would be given before the last caller comes.
const SLOW: &str = "/sleep?ms=1500";

/// The client's threads only wait; the default stack would reserve 2 GB.
const STACK_BYTES: usize = 128 * 1024;

#[test]
fn a_burst_below_the_soft_limit_starts_one_machine() {
    on_host(|host| {
        let sections = SNIPPET.replace("soft_limit = 250", "soft_limit = 2000");
        check_burst(host, &sections, 1)
    });
}

#[test]
fn a_burst_above_the_soft_limit_starts_both_machines_once() {
    on_host(|host| check_burst(host, SNIPPET, 2));
}

fn check_burst(host: &Host, sections: &str, expected: usize) -> Result<()> {
    let address = private_app(host, "quotes", sections)?;
    wait_asleep(host, "quotes")?;
    let before = starts(host)?;
    let failed = burst(host, &address)?;
    ensure!(failed.is_empty(), "{} of {REQUESTS} failed, first: {}", failed.len(), failed[0]);
    let made: Vec<usize> =
        starts(host)?.iter().zip(&before).map(|(after, before)| after - before).collect();
    let started = made.iter().filter(|starts| 0 < **starts).count();
    ensure!(started == expected, "{started} Machines were started, not {expected}: {made:?}");
    ensure!(made.iter().all(|starts| *starts <= 1), "one was started twice: {made:?}");
    Ok(())
}

/// How often each Machine was started, in the order of their ids.
fn starts(host: &Host) -> Result<Vec<usize>> {
    let mut machines = host.machines("quotes")?;
    machines.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(machines.iter().map(|machine| machine.events("start")).collect())
}

/// Sends all requests at once; returns the failures.
fn burst(host: &Host, address: &str) -> Result<Vec<String>> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    let target = SocketAddr::new(address.parse::<IpAddr>()?, 80);
    let barrier = Barrier::new(REQUESTS);
    let one = || {
        barrier.wait();
        match get(target, SLOW, Duration::from_secs(65)) {
            Ok(answer) if answer.status == 200 => None,
            Ok(answer) => Some(format!("{answer:?}")),
            Err(error) => Some(format!("{error:#}")),
        }
    };
    host.inside(|| {
        std::thread::scope(|scope| {
            let start = |_| {
                let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
                builder.spawn_scoped(scope, one)
            };
            let threads: Vec<_> = (0..REQUESTS).map(start).collect::<Result<_, _>>()?;
            let join = |thread: std::thread::ScopedJoinHandle<'_, Option<String>>| {
                thread.join().unwrap_or_else(|_| Some("the client panicked".to_owned()))
            };
            Ok(threads.into_iter().filter_map(join).collect())
        })
    })
}
