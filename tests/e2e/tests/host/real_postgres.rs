//! PostgreSQL as Debian has it, in a Machine that is suspended: the strictest program that people put to sleep.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Machine, Postgres, postgres_image, wait_until};

use crate::stage::{SOON, fly_toml, machine_processes, on_host};

const DATABASE: &str = "\
[[services]]
  protocol = 'tcp'
  internal_port = 5432
  auto_stop_machines = 'suspend'
  auto_start_machines = true
  min_machines_running = 0
  [[services.ports]]
    port = 5432
[[vm]]
  memory = '1gb'
";

const VOLUME: &str = "\
[mounts]
  source = 'data'
  destination = '/var/lib/postgresql/data'
";

/// Longer than anything that a waiting client does here.
const PATIENCE: Duration = Duration::from_secs(60);

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
    let dir = host.app_dir("db", &fly_toml("db", &postgres_image()?, sections))?;
    let launch = ["launch", "--flycast", "--copy-config", "--name", "db", "--ha=false", "--yes"];
    host.fly_in(&dir, &launch)?.ok()?;
    let ip: IpAddr = host.flycast("db")?.parse().context("its address")?;
    let address = SocketAddr::new(ip, 5432);
    let up = host.inside(|| Postgres::connect(address, PATIENCE)?.query("select 1"));
    up.with_context(|| logs(host, "db"))?;
    Ok(address)
}

fn only_machine(host: &Host) -> Result<Machine> {
    let machines = host.machines("db")?;
    ensure!(machines.len() == 1, "not one Machine: {machines:?}");
    machines.into_iter().next().context("no Machine")
}

/// What an app wrote, for error texts.
fn logs(host: &Host, app: &str) -> String {
    let said = host.fly(&["logs", "--no-tail", "-a", app]);
    said.map_or_else(|error| format!("{error:#}"), |output| output.to_string())
}
