//! PostgreSQL as Debian has it, in a Machine that is suspended: the strictest program that people put to sleep.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use perch_testkit::{
    Host, Machine, Network, Output, Postgres, Shared, holds_for, postgres_image, postgres_program,
    wait_until,
};

use crate::depths::logs;
use crate::memory::{make_swap_of, wait_paged_out};
use crate::stage::{SOON, machine_processes, on, on_host, one_machine_of};

const DATABASE: &str = "\
[[vm]]
  memory = '1gb'
[[services]]
  protocol = 'tcp'
  internal_port = 5432
  auto_stop_machines = 'suspend'
  auto_start_machines = true
  min_machines_running = 0
  ports = [{ port = 5432 }]
";

const VOLUME: &str = "\
[mounts]
  source = 'data'
  destination = '/var/lib/postgresql/data'
";

/// Sleeps in every short pause.
const NAPS: &str = "  auto_stop_after = '100ms'\n";

/// Longer than anything that a waiting client does here.
const PATIENCE: Duration = Duration::from_secs(60);

/// Clients that a pool keeps connected and that do nothing.
const POOL: usize = 100;

#[test]
fn it_starts_as_root_goes_on_as_another_user_and_keeps_data_while_asleep() {
    on_host(|host| {
        let address = database(host, DATABASE)?;
        let connect = || host.inside(|| Postgres::connect(address, PATIENCE));
        let mut client = connect()?;
        client.query("create table t (n int)")?;
        client.query("insert into t select generate_series(1, 1000)")?;
        // Its workers meet in `/dev/shm`.
        client.query("set force_parallel_mode = on")?;
        ensure!(client.query("select sum(n) from t")? == ["500500"], "another sum");
        drop(client);
        host.wait_all("db", "suspended", SOON)?;
        ensure!(connect()?.query("select count(*) from t")? == ["1000"], "rows are lost");
        let machine = only_machine(host)?;
        ensure!(machine.events("launch") == 1, "it was started anew: {machine:?}");
        Ok(())
    });
}

#[test]
fn a_pool_a_transaction_and_a_listener_sleep_in_swap_and_nobody_reconnects() {
    let paging = "auto_stop_after = \"1s\"\npage_out_after = \"200ms\"\n";
    on(
        || Host::start_with(Network::Open, paging),
        |host| {
            host.take_turn(Shared::Swap)?;
            make_swap_of(host, "1GiB")?;
            let address = database(host, DATABASE)?;
            let mut clients = host.inside(|| {
                (0..POOL + 2)
                    .map(|_| Postgres::connect(address, PATIENCE))
                    .collect::<Result<Vec<_>>>()
            })?;
            let (mut listener, mut busy) = (clients.remove(0), clients.remove(0));
            busy.query("create table t (n int)")?;
            busy.query("begin; insert into t values (1)")?;
            listener.query("listen news")?;

            wait_paged_out(host, "db")?;
            holds_for("asleep in swap", asleep(), || Ok(host.states("db")? == ["suspended"]))?;
            let started = Instant::now();
            clients[0].query("select 1").context("the first query after the sleep")?;
            println!("first query after the sleep: {:?}", started.elapsed());
            for client in &mut clients {
                let backend = client.query("select pg_backend_pid()")?;
                ensure!(backend == [client.backend.to_string()], "served by another process");
            }
            wait_paged_out(host, "db")?;
            clients[0].query("notify news, 'hello'")?;
            ensure!(listener.notification()? == "hello", "the listener is told something else");

            wait_paged_out(host, "db")?;
            busy.query("insert into t values (2); commit")?;
            ensure!(clients[1].query("select n from t order by n")? == ["1", "2"], "not committed");
            let machine = only_machine(host)?;
            ensure!(machine.events("launch") == 1, "it was started anew: {machine:?}");
            ensure!(2 < machine.events("resume"), "it was not asleep: {machine:?}");
            Ok(())
        },
    );
}

/// How long it stays in swap.
fn asleep() -> Duration {
    Duration::from_secs(if std::env::var_os("PERCH_LONG").is_some() { 180 } else { 1 })
}

#[test]
fn a_silent_query_is_not_frozen() {
    on_host(|host| {
        let address = database(host, DATABASE)?;
        let mut client = host.inside(|| Postgres::connect(address, PATIENCE))?;
        client.send("select pg_sleep(4)")?;
        holds_for("a running query keeps it awake", Duration::from_secs(3), || {
            Ok(host.states("db")? == ["started"])
        })?;
        client.receive()?;
        // The clock of the idle connection begins with the answer.
        host.wait_all("db", "suspended", SOON)?;
        ensure!(client.query("select 2")? == ["2"], "another answer");
        Ok(())
    });
}

#[test]
fn no_transaction_fails_over_many_sleeps_under_pgbench() {
    // Seconds that pgbench takes, and naps that fit into them on a slow machine.
    let (seconds, naps) =
        if std::env::var_os("PERCH_LONG").is_some() { ("120", 100) } else { ("15", 20) };
    on_host(|host| {
        let address = database(host, &format!("{DATABASE}{NAPS}"))?;
        let bench = start_pgbench(host, address, seconds)?;
        let output = bench.wait_with_output()?;
        let said = Output::new("pgbench".to_owned(), &output).ok()?;
        ensure!(said.contains("number of failed transactions: 0 "), "{said}");
        let mut client = host.inside(|| Postgres::connect(address, PATIENCE))?;
        ensure!(client.query(SUMS)? == ["t"], "the sums differ");
        let log = fs::read_to_string(host.server_log())?;
        let slept = log.matches("event=\"suspend\" state=\"suspended\"").count();
        println!("{slept} naps: {said}");
        ensure!(naps <= slept, "only {slept} naps: {said}");
        Ok(())
    });
}

/// What every transaction of pgbench keeps equal.
const SUMS: &str = "\
select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)
   and (select sum(bbalance) from pgbench_branches) = (select sum(tbalance) from pgbench_tellers)";

#[test]
fn what_was_committed_survives_a_kill_of_the_frozen_machine() {
    on_host(|host| {
        let address = database(host, &format!("{VOLUME}{DATABASE}"))?;
        let connect = || host.inside(|| Postgres::connect(address, PATIENCE));
        let mut client = connect()?;
        client.query("create table t (n int)")?;
        for round in 1..=2_u32 {
            client.query("insert into t select generate_series(1, 1000)")?;
            drop(client);
            host.wait_all("db", "suspended", SOON)?;
            let processes = machine_processes(host, &only_machine(host)?.id);
            let init = processes.into_iter().min_by_key(|process| process.pid);
            init.context("nothing of it runs")?.kill()?;
            // It refuses callers while it reads its log again, as anywhere.
            client = wait_until("the end of the recovery", SOON, || connect().map(Some))?;
            let rows = client.query("select count(*) from t")?;
            ensure!(rows == [(1000 * round).to_string()], "rows are lost: {rows:?}");
        }
        Ok(())
    });
}

/// Deploys one Machine of PostgreSQL; returns where it answers.
fn database(host: &Host, sections: &str) -> Result<SocketAddr> {
    let address = one_machine_of(host, "db", &postgres_image()?, sections)?;
    let ip: IpAddr = address.parse().context("its address")?;
    let address = SocketAddr::new(ip, 5432);
    // It listens before it is ready, and refuses callers meanwhile, as anywhere.
    let ask = || host.inside(|| Postgres::connect(address, PATIENCE)?.query("select 1"));
    let up = wait_until("the end of its start", SOON, || ask().map(Some));
    up.with_context(|| logs(host, "db"))?;
    Ok(address)
}

/// Makes the tables of pgbench and starts it with two clients who think between their transactions.
fn start_pgbench(host: &Host, address: SocketAddr, seconds: &str) -> Result<Child> {
    let program = postgres_program("pgbench")?.to_string_lossy().into_owned();
    let script = host.dir().join("transaction.sql");
    fs::write(&script, TRANSACTION)?;
    let script = script.to_string_lossy().into_owned();
    let ip = address.ip().to_string();
    let to = ["-h", ip.as_str(), "-U", "postgres", "postgres"];
    host.run(&program, &[&["-i", "-q", "-s", "2"], &to[..]].concat())?.ok()?;
    let work = ["-n", "-c", "2", "-T", seconds, "-f", &script];
    let mut command = host.command(&program, &[&work[..], &to[..]].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().context("starting pgbench")
}

/// The usual transaction, and a pause in which the Machine may or may not fall asleep.
const TRANSACTION: &str = "\
\\set aid random(1, 200000)
\\set bid random(1, 2)
\\set tid random(1, 20)
\\set delta random(-5000, 5000)
\\set pause random(50, 450)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime)
  VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
END;
\\sleep :pause ms
";

fn only_machine(host: &Host) -> Result<Machine> {
    let machines = host.machines("db")?;
    ensure!(machines.len() == 1, "not one Machine: {machines:?}");
    machines.into_iter().next().context("no Machine")
}
