//! What a host has of everything that can be forgotten: it must not grow.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use perch_testkit::{BLANKS_MAX, Host, Network, is_of_blank, network_namespaces, wait_until};

use crate::stage::{
    AWAKE, SNIPPET, SOON, check_answer, machine_processes, on, private_app, wait_asleep,
};

/// A pooled connection or two come and go with requests; a leak of each crash is more.
const DESCRIPTORS_MORE_MAX: usize = 3;

/// Counts at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resources {
    /// Links in the plane, links, routes, rules and tables of the host, mounts, and groups; each line
    /// once.
    listed: BTreeSet<String>,
    /// Network namespaces that a process is in or holds.
    namespaces: usize,
    shims: usize,
    /// Processes of shims that wait for a Machine.
    blanks: usize,
    /// Open descriptors by role.
    descriptors: BTreeMap<&'static str, usize>,
}

impl Resources {
    pub(crate) fn of(host: &Host) -> Result<Self> {
        let plane = host.run_in_plane("ip", &["-o", "link"])?.ok()?;
        let around = host.surroundings(&host.data_dir())?;
        let lines = plane.lines().map(|line| format!("plane {line}"));
        // Counters and the order of a hash say nothing.
        let lines = lines.chain(around.lines().map(str::to_owned));
        let listed = lines.filter(|line| !is_of_blank(line)).map(|line| without_numbers(&line));
        let server = host.server_process()?;
        let proxy = host.perch_processes("proxy").pop().context("no proxy runs")?;
        Ok(Self {
            listed: listed.collect(),
            namespaces: network_namespaces(&host.processes()),
            shims: host.perch_processes("shim").len(),
            blanks: host.processes().iter().filter(|it| it.is_blank()).count(),
            descriptors: [("server", &server), ("proxy", &proxy)]
                .into_iter()
                .map(|(role, process)| (role, process.descriptors().len()))
                .collect(),
        })
    }

    /// Fails unless there is as much as before, as soon as what is under way has ended.
    pub(crate) fn check_not_grown(host: &Host, before: &Self) -> Result<()> {
        wait_until("as much as before the crash", SOON, || {
            let now = Self::of(host)?;
            let more: Vec<_> = now.listed.difference(&before.listed).collect();
            ensure!(more.is_empty(), "there are more: {more:#?}");
            // The link of a Machine that sleeps is kept by the server that saw it awake only.
            let lost = before.listed.difference(&now.listed);
            // A group that was just made for a shim without a Machine was still empty then.
            let may_go = |line: &str| line.starts_with("plane link") || line.contains("/blank-");
            let less: Vec<_> = lost.filter(|line| !may_go(line)).collect();
            ensure!(less.is_empty(), "there are no more: {less:#?}");
            let namespaces = (before.namespaces, now.namespaces);
            ensure!(now.namespaces <= before.namespaces, "namespaces: {namespaces:?}");
            ensure!(now.shims == before.shims, "{} shims became {}", before.shims, now.shims);
            ensure!(now.blanks <= BLANKS_MAX, "{} processes of blanks", now.blanks);
            for (role, count) in &now.descriptors {
                let limit = before.descriptors[role] + DESCRIPTORS_MORE_MAX;
                ensure!(
                    *count <= limit,
                    "{role}: {count} descriptors, {:?} before",
                    before.descriptors
                );
            }
            Ok(Some(()))
        })
    }
}

/// Handles of rules and numbers of links change when they are made again.
fn without_numbers(line: &str) -> String {
    let link = line.strip_prefix("plane ").unwrap_or(line);
    let name = link.split_once(": ").filter(|(number, _)| number.parse::<u32>().is_ok());
    let name = name.and_then(|(_, rest)| rest.split(['@', ':']).next());
    match name {
        Some(name) if link.len() < line.len() => format!("plane link {name}"),
        Some(name) => format!("link {name}"),
        None => line.to_owned(),
    }
}

/// What is made ready for a next start comes a second after a stop: it is there now or then, and no leak.
const UNARMED: &str = "auto_stop_after = \"1s\"\narmed_max = 0\n";

#[test]
fn crashes_leave_nothing_behind_however_many() {
    let make = || Host::start_with(Network::Open, UNARMED);
    on(make, |host| {
        let awake = private_app(host, "awake", AWAKE)?;
        let quotes = private_app(host, "quotes", SNIPPET)?;
        wait_asleep(host, "quotes")?;
        let before = Resources::of(host)?;
        for round in 0..5 {
            match round % 3 {
                0 => host.kill_server()?,
                1 => drop(host.kill_proxy()?),
                _ => {
                    host.kill_server()?;
                    host.kill_proxy()?;
                }
            }
            if round % 3 != 1 {
                host.start_server()?;
            }
            check_answer(&host.get(&awake, 80, "/")?, "")?;
            check_answer(&host.get(&quotes, 80, "/")?, "")?;
            wait_asleep(host, "quotes")?;
        }
        for machine in host.machines("quotes")? {
            let left = machine_processes(host, &machine.id);
            ensure!(left.is_empty(), "{} sleeps and has processes: {left:?}", machine.id);
        }
        Resources::check_not_grown(host, &before)
    });
}
