//! `postgres`: the first query to a database that sleeps with a hundred connections open, beside the same query awake.
//!
//! Each round waits until the Machine is as deep asleep as the part says, then asks three times: on one connection
//! of the pool (frozen), on the same again (awake), and on another one, whose process has not run since.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use perch_testkit::{Host, Network, Postgres, postgres_image, wait_until};
use serde_json::Value;

use super::figures::{Series, holds};
use super::wake::PATIENCE;

/// Rounds for each depth.
pub(crate) const ROUNDS: usize = 30;

/// Idle connections, one of which asks.
const POOL: usize = 100;

/// The first query to a database whose memory is in swap, in milliseconds.
const PAGED_OUT_MS: f64 = 30.0;

const SERVICE: &str = "\
[[services]]
  protocol = 'tcp'
  internal_port = 5432
  auto_stop_machines = 'suspend'
  auto_start_machines = true
  min_machines_running = 0
  auto_stop_after = '200ms'
  [[services.ports]]
    port = 5432
[[vm]]
  memory = '1gb'
";

/// Measures both depths; whether the promise holds.
pub(crate) fn run(rounds: usize) -> Result<bool> {
    let resident = measure("frozen", "off", "suspended_resident", rounds)?;
    let paged_out = measure("paged out", "100ms", "suspended_paged_out", rounds)?;
    println!("{:<28} {:.2} ms", "worst, frozen", resident.at(1.0));
    println!("{:<28} {:.2} ms", "worst, paged out", paged_out.at(1.0));
    Ok(holds("paged out: worst / 30 ms", paged_out.at(1.0) / PAGED_OUT_MS, 1.0))
}

fn measure(name: &str, page_out_after: &str, depth: &str, rounds: usize) -> Result<Series> {
    let host =
        Host::start_with(Network::Open, &format!("page_out_after = \"{page_out_after}\"\n"))?;
    let data = host.data_dir().to_string_lossy().into_owned();
    host.perch(&["swap", "create", "1GiB", "--data-dir", &data])?.ok()?;
    let address = database(&host)?;
    let mut pool = host.inside(|| {
        (0..POOL).map(|_| Postgres::connect(address, PATIENCE)).collect::<Result<Vec<_>>>()
    })?;
    pool[0].query("create table t as select n, md5(n::text) from generate_series(1, 200000) n")?;
    for client in &mut pool {
        client.query("select count(*) from t where n < 100")?;
    }
    let (mut first, mut second, mut other) =
        (Series::default(), Series::default(), Series::default());
    let mut memory = Value::Null;
    for round in 0..rounds {
        memory = wait_for_depth(&host, depth)?["perch_memory"].clone();
        let at = round % (POOL - 1);
        first.push_ms(ask(&mut pool[at])?);
        second.push_ms(ask(&mut pool[at])?);
        other.push_ms(ask(&mut pool[at + 1])?);
    }
    first.print(&format!("postgres, {name}: first"), "ms");
    second.print(&format!("postgres, {name}: second"), "ms");
    other.print(&format!("postgres, {name}: other"), "ms");
    for what in ["resident_bytes", "anonymous_bytes", "swapped_bytes"] {
        let mb = memory[what].as_f64().unwrap_or_default() / f64::from(1 << 20);
        println!("{:<28} {mb:.1} MB", format!("  {what}"));
    }
    Ok(first)
}

fn ask(client: &mut Postgres) -> Result<Duration> {
    let started = Instant::now();
    let answer = client.query("select md5 from t where n = 4711 limit 1")?;
    let took = started.elapsed();
    if answer.len() != 1 {
        bail!("the database answers {answer:?}");
    }
    Ok(took)
}

fn database(host: &Host) -> Result<SocketAddr> {
    let text = format!("app = 'db'\n[build]\n  image = '{}'\n{SERVICE}", postgres_image()?);
    let dir = host.app_dir("db", &text)?;
    let launch = ["launch", "--flycast", "--ha=false", "--copy-config", "--name", "db", "--yes"];
    host.fly_in(&dir, &launch)?.ok()?;
    let ip: IpAddr = host.flycast("db")?.parse().context("its address")?;
    Ok(SocketAddr::new(ip, 5432))
}

fn wait_for_depth(host: &Host, depth: &str) -> Result<Value> {
    wait_until(&format!("the Machine to be {depth}"), PATIENCE, || {
        let list = host.api("/v1/apps/db/machines")?;
        let machine = list.get(0).context("no Machine")?.clone();
        Ok((machine["perch_depth"] == depth).then_some(machine))
    })
}
