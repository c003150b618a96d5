//! Memory of Machines that sleep: paged out where there is swap, and back with the next request.

mod ceiling;
mod compressed;
mod growth;
mod pressure;
mod shared;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use perch_testkit::{Host, Machine, Network, Shared, holds_for, wait_until};

use self::ceiling::Ceiling;
use crate::limits::Group;
use crate::stage::{SOON, check_answer, hello_image, machine_processes, on, one_machine_of};

/// Sleeps after a second, and its memory shortly after that.
const QUICK: &str = "auto_stop_after = \"1s\"\npage_out_after = \"200ms\"\n";

const HELD_MB: u64 = 40;

/// Not all of them fit into a GiB.
const MANY: usize = 20;
const EACH_MB: u64 = 100;
const MANY_LIMIT_MIB: u64 = 1024;

#[test]
fn a_sleeper_goes_to_swap_and_the_next_request_finds_all_of_it() {
    on_host(QUICK, |host| {
        let swap = make_swap(host)?;
        let (address, sum) = holder(host)?;
        let paged = wait_paged_out(host, "quotes")?;
        check_paged_out(host, &paged)?;
        check_rank(host, &paged.id, 999)?;
        let answer = host.get(&address, 80, "/held")?;
        check_answer(&answer, &sum)?;
        ensure!(answer.header("perch-wake").is_some(), "not woken by this: {answer:?}");
        check_awake_rank(host, &address, &paged.id)?;
        wait_paged_out(host, "quotes")?;
        host.perch(&["swap", "remove", "--data-dir", &data(host)])?.ok()?;
        ensure!(!is_on(&swap)? && !data_file(host).exists(), "the swap is left");
        check_answer(&host.get(&address, 80, "/held")?, &sum)
    });
}

#[test]
fn a_server_that_dies_while_it_pages_out_leaves_a_sleeper_for_the_next() {
    on_host(QUICK, |host| {
        make_swap(host)?;
        let (address, sum) = holder(host)?;
        host.wait_all("quotes", "suspended", SOON)?;
        // Somewhere in the time before, in, or after the page-out.
        host.kill_server()?;
        host.start_server()?;
        let paged = wait_paged_out(host, "quotes")?;
        check_rank(host, &paged.id, 999)?;
        host.kill_server()?;
        host.start_server()?;
        check_answer(&host.get(&address, 80, "/held")?, &sum)?;
        check_awake_rank(host, &address, &paged.id)?;
        // Woken while nobody is there who knows that it was in swap.
        wait_paged_out(host, "quotes")?;
        host.kill_server()?;
        check_answer(&host.get(&address, 80, "/held")?, &sum)?;
        host.start_server()?;
        wait_paged_out(host, "quotes")?;
        check_rank(host, &paged.id, 999)
    });
}

#[test]
fn without_swap_or_when_told_so_nothing_is_paged_out() {
    on_host("auto_stop_after = \"1s\"\npage_out_after = \"off\"\n", |host| {
        let wrong = host.perch(&["swap", "create", "12 parsecs", "--data-dir", &data(host)])?;
        ensure!(wrong.status.code() == Some(2), "not a wrong usage: {wrong}");
        ensure!(wrong.stderr.contains("512MiB"), "no example of a size: {wrong}");
        let none = host.perch(&["swap", "remove", "--data-dir", &data(host)])?.ok()?;
        ensure!(none.contains("no swap of this server"), "{none}");
        let swap = make_swap(host)?;
        let again = host.perch(&["swap", "create", "64MiB", "--data-dir", &data(host)])?;
        ensure!(again.fails()?.contains("perch swap remove"), "no remedy");
        holder(host)?;
        host.wait_all("quotes", "suspended", SOON)?;
        holds_for("it stays in memory", Duration::from_secs(1), || {
            let machine = host.machines("quotes")?.pop().context("no Machine")?;
            Ok(machine.value["perch_depth"] == "suspended_resident")
        })?;
        host.stop_server()?;
        host.perch(&["down", "--data-dir", &data(host)])?.ok()?;
        ensure!(!is_on(&swap)?, "the swap is on after `perch down`");
        host.start_server()?;
        ensure!(is_on(&swap)?, "the swap is off after a start");
        host.perch(&["down", "--data-dir", &data(host), "--purge"])?.ok()?;
        ensure!(!is_on(&swap)? && !data_file(host).exists(), "the swap is left");
        Ok(())
    });
}

#[test]
fn where_not_all_fit_the_longest_asleep_give_way_to_those_who_start() {
    let ceiling = Ceiling::new(MANY_LIMIT_MIB);
    on(
        || ceiling.host(""),
        |host| {
            holder_of(host, "quotes", EACH_MB)?;
            let ids = many(host)?;
            for id in &ids {
                nap(host, id)?;
            }
            // One more may be giving way just now, where other programs of the machine wait for memory.
            let (all, stopped) = wait_until("all to sleep or to be stopped", SOON, || {
                let all = host.machines("quotes")?;
                let stopped: Result<Vec<bool>> =
                    ids.iter().map(|id| is_stopped(&all, id)).collect();
                Ok(Some((all, stopped?)))
            })?;
            let gone = stopped.iter().filter(|stopped| **stopped).count();
            ensure!((MANY / 2..MANY).contains(&gone), "{gone} of {MANY} gave way: {stopped:?}");
            ensure!(
                stopped.iter().is_sorted_by(|a, b| a >= b),
                "not the longest asleep: {stopped:?}"
            );
            for machine in all.iter().filter(|machine| machine.state == "stopped") {
                check_gave_way(machine)?;
            }
            let (address, held) = holder_of(host, "other", EACH_MB)?;
            let other = host.machines("other")?.pop().context("no Machine")?.id;
            host.fly(&["machine", "stop", &other, "-a", "other", "-w", "30s"])?.ok()?;
            check_answer(&host.get(&address, 80, "/held")?, &held)?;
            check_answer(&host.get(&host.flycast("quotes")?, 80, "/held")?, "100 MB")?;
            ceiling.check_nobody_else_was_killed()
        },
    );
}

/// The Machines of `quotes`, all but the first made here and never started.
fn many(host: &Host) -> Result<Vec<String>> {
    let first = host.machines("quotes")?.pop().context("no Machine")?;
    let body = serde_json::json!({ "config": first.value["config"], "skip_launch": true });
    let mut ids = vec![first.id];
    while ids.len() < MANY {
        let path = "/v1/apps/quotes/machines";
        let made = host.request("POST", path, "application/json", body.to_string().as_bytes())?;
        let made: serde_json::Value = serde_json::from_str(&made.body)?;
        ids.push(made["id"].as_str().with_context(|| format!("no id: {made}"))?.to_owned());
    }
    Ok(ids)
}

/// Starts a Machine, lets it take its memory, and suspends it.
fn nap(host: &Host, id: &str) -> Result<()> {
    let path = format!("/v1/apps/quotes/machines/{id}");
    let ask = |verb: &str| {
        let answer = host.request("POST", &format!("{path}/{verb}"), "application/json", b"{}")?;
        ensure!(answer.status == 200, "{verb} of {id}: {answer:?}");
        Ok(())
    };
    ask("start")?;
    wait_until("its memory", SOON, || {
        let held = host.api(&path)?["perch_memory"]["anonymous_bytes"].as_u64();
        Ok(held.is_some_and(|held| EACH_MB << 20 <= held).then_some(()))
    })?;
    ask("suspend")?;
    wait_until("its sleep", SOON, || Ok((host.api(&path)?["state"] == "suspended").then_some(())))
}

fn suspend(host: &Host, app: &str) -> Result<()> {
    let id = host.machines(app)?.pop().context("no Machine")?.id;
    host.fly(&["machine", "suspend", &id, "-a", app])?.ok()?;
    host.wait_all(app, "suspended", SOON)
}

fn is_stopped(all: &[Machine], id: &str) -> Result<bool> {
    let machine = all.iter().find(|machine| machine.id == id).context("it is gone")?;
    ensure!(["stopped", "suspended"].contains(&machine.state.as_str()), "{machine:?}");
    Ok(machine.state == "stopped")
}

fn check_gave_way(machine: &Machine) -> Result<()> {
    let events = machine.value["events"].as_array().context("no events")?;
    let of = |kind: &str| events.iter().find(|event| event["type"] == kind).cloned();
    let stop = of("stop").context("no stop among its events")?;
    let cause = stop["request"]["cause"].as_str().unwrap_or_default();
    ensure!(cause.contains("memory is short"), "it does not say why: {stop}");
    let exit = of("exit").context("no exit among its events")?;
    ensure!(exit["request"]["exit_event"]["oom_killed"] != true, "killed: {exit}");
    Ok(())
}

/// A host whose server may count on little. Where there is swap nobody has to stop, which is not what is asked here.
fn without_swap(config: &str) -> Result<Host> {
    let mut host = bare_without_swap()?;
    host.configure(config);
    host.start_server()?;
    Ok(host)
}

fn bare_without_swap() -> Result<Host> {
    let mut host = Host::bare(Network::Open)?;
    host.turn_off_swap()?;
    Ok(host)
}

fn on_host(config: &str, test: impl FnOnce(&mut Host) -> Result<()>) {
    on(
        || {
            let mut host = Host::start_with(Network::Open, config)?;
            host.take_turn(Shared::Swap)?;
            Ok(host)
        },
        test,
    );
}

fn data(host: &Host) -> String {
    host.data_dir().to_string_lossy().into_owned()
}

fn data_file(host: &Host) -> std::path::PathBuf {
    host.data_dir().join("swap")
}

/// Makes swap that goes with the host; answers what the kernel calls it.
pub(crate) fn make_swap(host: &Host) -> Result<String> {
    make_swap_of(host, "128MiB")
}

/// The same, of another size.
pub(crate) fn make_swap_of(host: &Host, size: &str) -> Result<String> {
    host.perch(&["swap", "create", size, "--data-dir", &data(host)])?.ok()?;
    let file = data_file(host);
    ensure!(fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600, "others may read it");
    let name = file.to_string_lossy().into_owned();
    ensure!(is_on(&name)?, "it is not on");
    Ok(name)
}

fn is_on(swap: &str) -> Result<bool> {
    Ok(fs::read_to_string("/proc/swaps")?.lines().any(|line| line.starts_with(swap)))
}

fn holder(host: &Host) -> Result<(String, String)> {
    holder_of(host, "quotes", HELD_MB)
}

/// Deploys an app that holds memory; returns its address and what it says of that memory.
pub(crate) fn holder_of(host: &Host, app: &str, megabytes: u64) -> Result<(String, String)> {
    let sections = format!(
        "[env]\n  HOLD_MB = '{megabytes}'\n\n[http_service]\n  internal_port = 8081\n  force_https = false\n  \
         auto_stop_machines = \"suspend\"\n  auto_start_machines = true\n  min_machines_running = 0\n"
    );
    let address = one_machine_of(host, app, &hello_image(host)?, &sections)?;
    let answer = host.get(&address, 80, "/held")?;
    check_answer(&answer, &format!("{megabytes} MB"))?;
    Ok((address, answer.body))
}

pub(crate) fn wait_paged_out(host: &Host, app: &str) -> Result<Machine> {
    wait_until("the sleeper to be in swap", SOON, || {
        let machine = host.machines(app)?.into_iter().next().context("no Machine")?;
        let depth = machine.value["perch_depth"].clone();
        if depth == "suspended_paged_out" { Ok(Some(machine)) } else { bail!("it is {depth}") }
    })
}

fn check_paged_out(host: &Host, machine: &Machine) -> Result<()> {
    // It may have been looked at in the midst of its page-out.
    wait_until("all of it in swap", SOON, || {
        let machine = host.machines("quotes")?.pop().context("no Machine")?;
        let memory = &machine.value["perch_memory"];
        let bytes = |name| memory[name].as_u64().with_context(|| format!("no {name}: {memory}"));
        ensure!(HELD_MB << 20 <= bytes("swapped_bytes")?, "it is not in swap: {memory}");
        ensure!(bytes("anonymous_bytes")? < 2 << 20, "it is still in memory: {memory}");
        Ok(Some(()))
    })?;
    let seen = wait_until("the event", SOON, || {
        let shown = host.fly(&["machine", "status", &machine.id, "-a", "quotes"])?.ok()?;
        Ok(shown.contains("page_out").then_some(shown))
    })?;
    let stat = Group::of(host, machine)?.read("memory", "memory.stat", "memory.stat")?;
    let copies = stat.lines().find_map(|line| line.strip_prefix("swapcached "));
    let copies: u64 = copies.with_context(|| format!("no swapcached: {stat}"))?.parse()?;
    ensure!(copies < 2 << 20, "it is still in memory, as copies: {stat}");
    ensure!(seen.contains("suspended, paged out"), "no depth in {seen}");
    ensure!(seen.contains("paged_out_bytes="), "no amount in {seen}");
    let status = host.fly(&["status", "-a", "quotes"])?.ok()?;
    ensure!(status.contains("suspended, paged out"), "no depth in {status}");
    Ok(())
}

/// What a Machine has that is kept awake meanwhile.
pub(crate) fn check_awake_rank(host: &Host, address: &str, id: &str) -> Result<()> {
    wait_until("the rank of all others", SOON, || {
        host.get(address, 80, "/held")?;
        rank_is(host, id, 0)
    })
}

/// Waits until all processes of a Machine have this rank among the kernel's choices.
pub(crate) fn check_rank(host: &Host, id: &str, rank: i32) -> Result<()> {
    wait_until(&format!("rank {rank}"), SOON, || rank_is(host, id, rank))
}

fn rank_is(host: &Host, id: &str, rank: i32) -> Result<Option<()>> {
    let ranks: Result<Vec<String>> = machine_processes(host, id)
        .iter()
        .map(|it| Ok(fs::read_to_string(format!("/proc/{}/oom_score_adj", it.pid))?))
        .collect();
    let ranks = ranks?;
    let all = !ranks.is_empty() && ranks.iter().all(|it| it.trim() == rank.to_string());
    if all { Ok(Some(())) } else { bail!("they are {ranks:?}") }
}
