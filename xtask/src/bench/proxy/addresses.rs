//! Many Flycast addresses: what a connect to one of them takes beside a listener that has only one, and what it takes to get
//! and to give back one more, each on disk before it is answered.

use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Network};
use serde_json::{Value, json};

use super::super::figures::Series;
use super::super::fleet::fill::{Filler, Kind, each};
use super::super::rig::Plain;
use super::{Limit, check};

pub(super) const NAME: &str = "Flycast addresses";
pub(super) const COUNT: usize = 100_000;

/// Addresses of an app: one for each network that may call it.
const NETWORKS: usize = 10;
const ROUNDS: usize = 2_000;
const PORT: u16 = 80;

/// Measures once; whether all promises hold.
pub(super) fn run(count: usize) -> Result<bool> {
    let host = Host::start_with(Network::Open, "")?;
    let began = Instant::now();
    let apps = count / NETWORKS;
    let filler = Filler::new(&host)?;
    each(apps, |number| fill(&host, &filler, &format!("app-{number}")))?;
    println!("{count} {NAME}: {apps} apps of {NETWORKS}, made in {:.0?}", began.elapsed());
    let (allocate, release) = one_more(&host, apps)?;
    let all = addresses(&host, apps)?;
    let plain = Plain::start(&host)?;
    let [mut ours, mut theirs] = [Series::default(), Series::default()];
    host.inside(|| {
        for round in 0..ROUNDS {
            let address = all[round.wrapping_mul(7919) % all.len()];
            ours.push(connect(address)?);
            theirs.push(connect(plain.address())?);
        }
        Ok(())
    })?;
    ours.print("  connect, one of them", "us");
    theirs.print("  connect, plain listener", "us");
    allocate.print("  allocate", "ms");
    release.print("  release", "ms");
    let ratio = ours.median() / theirs.median();
    let mut good = check("connect", "a plain listener", ratio, Limit::AtMost(1.1));
    good &= check("allocate", "1 ms", allocate.median(), Limit::AtMost(1.0));
    good &= check("release", "1 ms", release.median(), Limit::AtMost(1.0));
    Ok(good)
}

fn fill(host: &Host, filler: &Filler, app: &str) -> Result<()> {
    filler.make(host, app, 1, Kind::Stopped)?;
    // It has one already, for its own network.
    (1..NETWORKS).try_for_each(|network| assign(host, app, network).map(drop))
}

fn assign(host: &Host, app: &str, network: usize) -> Result<String> {
    let input = json!({"type": "private_v6", "network": format!("net-{network}")});
    let given = post(host, &format!("/v1/apps/{app}/ip_assignments"), &input)?;
    Ok(given["ip"].as_str().context("no address")?.to_owned())
}

fn post(host: &Host, path: &str, body: &Value) -> Result<Value> {
    let answer = host.request("POST", path, "application/json", body.to_string().as_bytes())?;
    ensure!(matches!(answer.status, 200 | 201), "POST {path}: {answer:?}");
    Ok(serde_json::from_str(&answer.body)?)
}

/// Milliseconds that it takes to get one more and to give it back, one client.
fn one_more(host: &Host, apps: usize) -> Result<(Series, Series)> {
    let [mut allocate, mut release] = [Series::default(), Series::default()];
    for number in 0..apps.min(200) {
        let app = format!("app-{number}");
        let began = Instant::now();
        let ip = assign(host, &app, NETWORKS)?;
        allocate.push_ms(began.elapsed());
        let path = format!("/v1/apps/{app}/ip_assignments/{ip}");
        let began = Instant::now();
        let gone = host.request("DELETE", &path, "application/json", &[])?;
        release.push_ms(began.elapsed());
        ensure!(matches!(gone.status, 200..=204), "DELETE {path}: {gone:?}");
    }
    Ok((allocate, release))
}

/// Those that the host may call: each app's own.
fn addresses(host: &Host, apps: usize) -> Result<Vec<SocketAddr>> {
    let mut all = Vec::new();
    for number in 0..apps.min(ROUNDS) {
        let list = host.api(&format!("/v1/apps/app-{number}/ip_assignments"))?;
        let ip = list["ips"][0]["ip"].as_str().context("no address")?;
        all.push(SocketAddr::new(ip.parse()?, PORT));
    }
    Ok(all)
}

/// Microseconds of one connect.
fn connect(address: SocketAddr) -> Result<f64> {
    let began = Instant::now();
    let stream = TcpStream::connect(address).with_context(|| address.to_string())?;
    let took = began.elapsed();
    drop(stream);
    Ok(took.as_secs_f64() * 1e6)
}
