//! The second part of `sleep`: a frozen Machine whose 500 MB are in a swap file, to the first byte of an answer that
//! needs little of them; and how much memory its sleep gives back.
//!
//! The memory given back is the change of the host's MemAvailable between frozen and paged out: on a host on which
//! others work it is their change too, so the middle of all rounds counts. Pages that were just freed lie on lists of
//! single processors, whoever frees them; MemAvailable does not count these, and the kernel empties them over a minute
//! or so. They are free, so they are added; what MemAvailable alone says at once is told as well.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use perch_testkit::{Host, Image, Network, wait_until};

use super::figures::{Series, holds};
use super::rootfs::{self, Program};
use super::wake::{PATIENCE, first_byte};

/// A round writes 500 MB to the disk and reads them back.
const ROUNDS_MAX: usize = 20;
const HEAP_MB: f64 = 500.0;
/// Medians, in milliseconds.
const NATIVE_MS: f64 = 3.0;
const PYTHON_MS: f64 = 30.0;
/// Part of the heap.
const GIVEN_BACK: f64 = 0.95;

/// Time enough to read MemAvailable before the page-out begins.
const CONFIG: &str = "auto_stop_after = \"100ms\"\npage_out_after = \"1s\"\n";

/// Measures both programs; whether the promises hold.
pub(super) fn run(dir: &Path, rounds: usize) -> Result<bool> {
    let host = Host::start_with(Network::Open, CONFIG)?;
    let data = host.data_dir().to_string_lossy().into_owned();
    host.perch(&["swap", "create", "1GiB", "--data-dir", &data])?.ok()?;
    let mut good = true;
    let programs = [(rootfs::native(dir)?, NATIVE_MS), (rootfs::python(dir)?, PYTHON_MS)];
    for (program, limit) in programs {
        let name = program.name;
        let address = deploy(&host, &program, dir)?;
        let Figures { first, back, counted } =
            measure(&host, name, address, rounds.min(ROUNDS_MAX))?;
        first.print(&format!("{name}: paged out"), "ms");
        back.print(&format!("{name}: given back"), "of 500 MB");
        counted.print(&format!("{name}: MemAvailable alone"), "of 500 MB");
        good &= holds(&format!("{name}: median / {limit} ms"), first.median() / limit, 1.0);
        good &= holds(
            &format!("{name}: 95 % / given back"),
            GIVEN_BACK / back.median().max(0.001),
            1.0,
        );
        host.fly(&["apps", "destroy", name, "--yes"])?.ok()?;
    }
    Ok(good)
}

fn deploy(host: &Host, program: &Program, dir: &Path) -> Result<SocketAddr> {
    let argv: Vec<&str> = program.argv.iter().map(String::as_str).collect();
    let port = format!("PORT={}", program.port);
    let hold = format!("HOLD_MB={HEAP_MB}");
    let image = Image::directory(&program.root)?.entrypoint(&argv).env(&[&port, &hold]);
    let image = image.write(&dir.join(format!("{}-holding", program.name)))?;
    let text = format!(
        "app = '{}'\n[build]\n  image = '{image}'\n[[vm]]\n  memory = '1gb'\n[http_service]\n  internal_port = {}\n  \
         force_https = false\n  auto_stop_machines = 'suspend'\n  auto_start_machines = true\n  min_machines_running = 0\n",
        program.name, program.port
    );
    let app = host.app_dir(program.name, &text)?;
    let args =
        ["launch", "--flycast", "--ha=false", "--copy-config", "--name", program.name, "--yes"];
    host.fly_in(&app, &args)?.ok()?;
    let ip: IpAddr = host.flycast(program.name)?.parse()?;
    let address = SocketAddr::new(ip, 80);
    Ok(address)
}

/// What the rounds of one program gave.
#[derive(Default)]
struct Figures {
    /// The first byte, in milliseconds.
    first: Series,
    /// Part of the heap.
    back: Series,
    /// Part of the heap, as MemAvailable tells at once.
    counted: Series,
}

fn measure(host: &Host, app: &str, address: SocketAddr, rounds: usize) -> Result<Figures> {
    let mut figures = Figures::default();
    let machine = host.machines(app)?.pop().context("no Machine")?.id;
    for _ in 0..rounds {
        // A new run: what little of an earlier one came back from swap is no measure.
        host.fly(&["machine", "stop", &machine, "-a", app, "-w", "20s"])?.ok()?;
        host.inside(|| first_byte(address, Instant::now()))?;
        wait_depth(host, app, "suspended_resident")?;
        let (before, listed_before) = (available_mb()?, listed_mb()?);
        wait_depth(host, app, "suspended_paged_out")?;
        wait_event(host, app)?;
        let (counted, listed) = (available_mb()? - before, listed_mb()? - listed_before);
        figures.back.push((counted + listed) / HEAP_MB);
        figures.counted.push(counted / HEAP_MB);
        figures.first.push_ms(host.inside(|| first_byte(address, Instant::now()))?);
    }
    Ok(figures)
}

fn wait_depth(host: &Host, app: &str, depth: &str) -> Result<()> {
    wait_until(&format!("the Machine to be {depth}"), PATIENCE, || {
        let list = host.api(&format!("/v1/apps/{app}/machines"))?;
        let machines = list.as_array().context("not a list of Machines")?;
        // To the end: the word says only that most of it is there.
        let settled = |machine: &serde_json::Value| {
            let bytes = |name: &str| machine["perch_memory"][name].as_u64().unwrap_or(0);
            machine["perch_depth"] == depth
                && (depth == "suspended_resident"
                    || bytes("anonymous_bytes") * 20 < bytes("swapped_bytes"))
        };
        Ok(machines.iter().all(settled).then_some(()))
    })
}

/// Until it is in swap alone.
fn wait_event(host: &Host, app: &str) -> Result<()> {
    wait_until("the page-out to be over", PATIENCE, || {
        let machine = host.machines(app)?.pop().context("no Machine")?;
        Ok((machine.value["events"][0]["type"] == "page_out").then_some(()))
    })
}

fn available_mb() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    let kilobytes: f64 = number.context("no MemAvailable")?.parse()?;
    Ok(kilobytes / 1024.0)
}

/// Free pages on the lists of the processors, of all zones.
fn listed_mb() -> Result<f64> {
    let text = fs::read_to_string("/proc/zoneinfo")?;
    let counts = text.lines().filter_map(|line| line.trim_start().strip_prefix("count:"));
    let pages: f64 = counts.filter_map(|count| count.trim().parse::<f64>().ok()).sum();
    Ok(pages * 4096.0 / f64::from(1 << 20))
}
