//! Many apps that become idle at the same time, by the caller's clock and by what the server logs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use perch_testkit::{Host, Network, wait_until};

use super::fill::{self, Filler, Kind};
use super::{PATIENCE, Rows, is_armed};

/// What each program holds.
const HELD_MB: usize = 2;
/// Time in which one app is called for sure, so that none sleeps before all were called.
const CALL: Duration = Duration::from_millis(60);
const AFTER_MIN: Duration = Duration::from_secs(5);
const DAY: f64 = 86_400.0;

/// What the log says of one Machine.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    decided: Option<f64>,
    asleep: Option<f64>,
}

/// Makes the apps, calls all, and sees how soon they sleep.
pub(super) fn measure(rows: &mut Rows, apps: usize, kind: Kind) -> Result<()> {
    let host = Host::start_with(Network::Open, "")?;
    let after = AFTER_MIN.max(CALL * u32::try_from(apps)?);
    let mut filler = Filler::new(&host)?;
    (filler.after, filler.held) = (format!("{}ms", after.as_millis()), HELD_MB);
    filler.fill(&host, apps, 1, kind)?;
    let targets = targets(&host, apps)?;
    // All are awake after this; the second round is over in a fraction of the time.
    call_all(&host, &targets)?;
    let offset = host.server_log().metadata()?.len();
    let deadlines: BTreeMap<String, f64> = call_all(&host, &targets)?
        .into_iter()
        .map(|(id, at)| (id, at + after.as_secs_f64()))
        .collect();
    let (sleep, asleep, limit) = match kind {
        Kind::Suspend => ("suspending", "suspended", 2.0),
        _ => ("stopping", "stopped", 30.0),
    };
    let seen = wait_until("all to sleep", after + PATIENCE, || {
        let seen = read(&host, offset, sleep, asleep)?;
        let slept =
            deadlines.keys().filter(|id| seen.get(*id).is_some_and(|it| it.asleep.is_some()));
        let slept = slept.count();
        if slept == apps { Ok(Some(seen)) } else { bail!("{slept} of {apps} sleep") }
    })?;
    let count = format!("{apps} apps idle at once");
    let last = deadlines.values().copied().fold(0.0, f64::max);
    let since =
        |at: Option<f64>, from: f64| (at.unwrap_or(f64::NAN) - from + 1.5 * DAY) % DAY - DAY / 2.0;
    let late = deadlines.iter().map(|(id, deadline)| since(seen[id].decided, *deadline));
    let early = late.clone().fold(f64::INFINITY, f64::min);
    ensure!(-0.1 < early, "one was put to sleep {:.2} s before its time", -early);
    rows.at_most(
        &format!("{count}: {sleep} after its deadline, worst"),
        late.fold(0.0, f64::max),
        1.0,
        "s",
    );
    let slept = deadlines.keys().map(|id| since(seen[id].asleep, last)).fold(0.0, f64::max);
    rows.at_most(&format!("{count}: all {asleep} after the last deadline"), slept, limit, "s");
    if kind == Kind::Stop {
        wait_until("their shims to be gone", PATIENCE, || {
            Ok(host.perch_processes("shim").iter().all(is_armed).then_some(()))
        })?;
    }
    Ok(())
}

/// Machines and where they are reached.
fn targets(host: &Host, apps: usize) -> Result<Vec<(String, SocketAddr)>> {
    let found = Mutex::new(Vec::new());
    fill::each(apps, |number| {
        let app = fill::name(number);
        let machines = host.api(&format!("/v1/apps/{app}/machines"))?;
        let ips = host.api(&format!("/v1/apps/{app}/ip_assignments"))?;
        let id = machines[0]["id"].as_str().context("no Machine")?.to_owned();
        let ip = ips["ips"][0]["ip"].as_str().with_context(|| format!("no address: {ips}"))?;
        let target = (id, SocketAddr::new(ip.parse::<IpAddr>()?, 80));
        found.lock().unwrap_or_else(PoisonError::into_inner).push(target);
        Ok(())
    })?;
    Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Calls each once; answers when each had answered, in seconds of the day.
fn call_all(host: &Host, targets: &[(String, SocketAddr)]) -> Result<Vec<(String, f64)>> {
    let answered = Mutex::new(Vec::new());
    host.inside(|| {
        fill::each(targets.len(), |number| {
            let (id, address) = &targets[number];
            let answer = perch_testkit::get(*address, "/", PATIENCE)?;
            ensure!(answer.status == 200, "{answer:?}");
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64() % DAY;
            answered.lock().unwrap_or_else(PoisonError::into_inner).push((id.clone(), now));
            Ok(())
        })
    })?;
    Ok(answered.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// What was logged from there on, by Machine.
fn read(host: &Host, offset: u64, sleep: &str, asleep: &str) -> Result<BTreeMap<String, Seen>> {
    let mut file = File::open(host.server_log())?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let mut all: BTreeMap<String, Seen> = BTreeMap::new();
    for line in String::from_utf8_lossy(&bytes).lines() {
        let Some((at, id, state)) = event(line) else { continue };
        let seen = all.entry(id.to_owned()).or_default();
        if state == sleep {
            seen.decided.get_or_insert(at);
        } else if state == asleep {
            seen.asleep.get_or_insert(at);
        }
    }
    Ok(all)
}

/// When, which Machine, and its state from then on.
fn event(line: &str) -> Option<(f64, &str, &str)> {
    let (stamp, _) = line.split_once("Z ")?;
    let field = |name: &str| line.split_once(name)?.1.split_once('"').map(|(value, _)| value);
    Some((seconds(stamp)?, field(" machine=\"")?, field(" state=\"")?))
}

/// Of the day.
fn seconds(stamp: &str) -> Option<f64> {
    let (_, time) = stamp.split_once('T')?;
    let mut parts = time.split(':').map(|part| part.parse::<f64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    Some((hours * 60.0 + minutes) * 60.0 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_tells_when_which_and_what() {
        let line = "2026-11-21T19:19:23.500000Z  INFO machine=\"6de\" event=\"suspend\" state=\"suspending\" cause=\"x\"";
        assert_eq!(event(line), Some((69_563.5, "6de", "suspending")));
        assert_eq!(event("ready in 3 ms"), None);
    }
}
