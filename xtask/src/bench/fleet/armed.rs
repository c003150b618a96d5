//! What an armed Machine costs while it waits, and whether the next one is made and started as fast among many.
//!
//! One Machine is stopped and woken again and again: with no other that is armed, with some, with all, and when all
//! others are gone. The two figures without others tell how much is noise.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Network, wait_until};

use super::cost::pss_mb;
use super::fill::{Filler, Kind};
use super::{PATIENCE, Rows, children, is_armed};
use crate::bench::figures::Series;
use crate::bench::wake::first_byte;

const CONFIG: &str = "armed_max = 1000\n";
/// That the server tells how long it makes what it arms.
const LOG: &str = "info,perch::server::arming=debug";
const PROBE: &str = "probe";
/// In each crowd.
const ROUNDS: usize = 30;
/// Of the medians among none, what is still noise.
const FLAT: f64 = 1.25;
/// Of each, in MiB.
const EACH: f64 = 0.7;

/// What the one Machine took, in milliseconds.
#[derive(Default)]
struct Crowd {
    create: Series,
    start: Series,
    /// Not armed.
    cold: Series,
}

pub(super) fn measure(rows: &mut Rows, count: usize) -> Result<()> {
    let mut host = Host::bare(Network::Open)?;
    host.configure(CONFIG);
    host.equip_server("PERCH_LOG", LOG);
    host.start_server()?;
    let mut filler = Filler::new(&host)?;
    filler.after = "100ms".to_owned();
    filler.make(&host, PROBE, 1, Kind::Stop)?;
    let ip: IpAddr = host.flycast(PROBE)?.parse()?;
    let address = SocketAddr::new(ip, 80);
    let mut alone = Crowd::measure(&host, address, 0)?;
    filler.fill(&host, count / 5, 1, Kind::Stop)?;
    let some = Crowd::measure(&host, address, count / 5)?;
    filler.fill_from(&host, count / 5, count, Kind::Stop)?;
    let all = Crowd::measure(&host, address, count)?;
    // One of them may be made anew meanwhile.
    let (armed, each) = wait_until("a look at all of them", PATIENCE, || {
        let shims: Vec<_> = host.perch_processes("shim").into_iter().filter(is_armed).collect();
        let armed = shims.len();
        let all = pss_mb(&[children(&host, &shims), shims].concat())?;
        Ok(Some((armed, all / armed as f64)))
    })?;
    rows.at_most(&format!("{armed} armed: shim + init, each"), each, EACH, "MiB");
    filler.empty(&host, count)?;
    let again = Crowd::measure(&host, address, 0)?;
    alone.create.append(again.create);
    alone.start.append(again.start);
    alone.cold.append(again.cold);
    for (others, crowd) in [(count / 5, &some), (count, &all)] {
        let name = |what: &str| format!("{what} beside {others} armed / beside none");
        let ratio = |of: fn(&Crowd) -> &Series| of(crowd).median() / of(&alone).median();
        rows.at_most(&name("create"), ratio(|it| &it.create), FLAT, "x");
        rows.at_most(&name("armed start"), ratio(|it| &it.start), FLAT, "x");
        rows.at_most(&name("cold start"), ratio(|it| &it.cold), FLAT, "x");
    }
    Ok(())
}

impl Crowd {
    fn measure(host: &Host, address: SocketAddr, others: usize) -> Result<Self> {
        let mut crowd = Self::default();
        let id = host.machines(PROBE)?.pop().context("no Machine")?.id;
        wait_until("all to be armed", PATIENCE, || {
            let shims = host.perch_processes("shim");
            Ok((others < shims.iter().filter(|it| is_armed(it)).count()).then_some(()))
        })?;
        // What was armed in an earlier crowd may be waiting: that is told, too.
        let mut seen = await_armed(host, &id, 0)?.len() - 1;
        for _ in 0..ROUNDS {
            let took = await_armed(host, &id, seen)?;
            seen = took.len();
            crowd.create.push(took.last().copied().context("never armed")?);
            crowd.start.push_ms(host.inside(|| first_byte(address, Instant::now()))?);
            ensure!(was_armed(host)?, "what was armed is not what started");
            host.wait_all(PROBE, "stopped", PATIENCE)?;
            // It is armed a second after the stop.
            let cold = host.inside(|| first_byte(address, Instant::now()))?;
            if !was_armed(host)? {
                crowd.cold.push_ms(cold);
            }
            host.wait_all(PROBE, "stopped", PATIENCE)?;
        }
        for (name, series) in
            [("create", &crowd.create), ("armed start", &crowd.start), ("cold start", &crowd.cold)]
        {
            series.print(&format!("{name}, {others} others armed"), "ms");
        }
        Ok(crowd)
    }
}

/// Until it has been armed more than `seen` times; how long each took the server.
fn await_armed(host: &Host, id: &str, seen: usize) -> Result<Vec<f64>> {
    wait_until("the Machine to be armed", PATIENCE, || {
        let log = std::fs::read_to_string(host.server_log())?;
        let of_it = format!("machine={id}");
        let lines = log.lines().filter(|line| line.contains(&of_it));
        let took = lines.filter_map(|line| line.split_once(" took_ms=")?.1.trim().parse().ok());
        let took: Vec<f64> = took.collect();
        Ok((seen < took.len()).then_some(took))
    })
}

/// Whether its last start was an armed one.
fn was_armed(host: &Host) -> Result<bool> {
    let machine = host.machines(PROBE)?.pop().context("no Machine")?;
    let events = machine.value["events"].as_array().context("no events")?;
    let start = events.iter().find(|event| event["type"] == "start").context("no start")?;
    Ok(start["request"]["armed"] == true)
}
