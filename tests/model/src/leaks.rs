//! What a host has of everything that can be forgotten.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use perch_testkit::{BLANKS_MAX, Host, is_of_blank, network_namespaces, wait_until};

/// What is under way when a sequence ends is over within this time.
const SOON: Duration = Duration::from_secs(20);
/// Connections of the API and of the proxy's pool come and go.
const DESCRIPTORS_MORE_MAX: usize = 12;

/// Counts and lists at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Resources {
    /// Links, routes, rules, sets and tables of host and plane, mounts, cgroups, files, processes; each line once.
    listed: BTreeSet<String>,
    namespaces: usize,
    /// But for those of shims without a Machine.
    descriptors: usize,
    /// Processes of shims without a Machine.
    blanks: usize,
}

impl Resources {
    pub(crate) fn of(host: &Host) -> Result<Self> {
        let around = host.surroundings(&host.data_dir())?;
        let lines = around.lines().filter(|line| !is_of_blank(line));
        let mut listed: BTreeSet<String> = lines.map(nameless).collect();
        for command in ["ip -o link", "ip -6 route show table all", "nft list ruleset"] {
            let words: Vec<&str> = command.split(' ').collect();
            let text = host.run_in_plane(words[0], &words[1..])?.ok()?;
            listed.extend(text.lines().map(|line| format!("plane {}", nameless(line))));
        }
        let mut processes = host.processes();
        let all = processes.len();
        processes.retain(|process| !process.is_blank());
        let blanks = all - processes.len();
        listed.extend(processes.iter().map(|it| format!("process {}", it.args.join(" "))));
        let data = host.data_dir();
        files(&data, &data, &mut listed);
        let descriptors = processes.iter().map(|process| process.descriptors().len()).sum();
        Ok(Self { listed, namespaces: network_namespaces(&processes), descriptors, blanks })
    }

    /// Fails unless, soon, there is no more than there was.
    pub(crate) fn check_not_grown(host: &Host, before: &Self) -> Result<()> {
        wait_until("as much as before", SOON, || {
            let now = Self::of(host)?;
            let more: Vec<_> = now.listed.difference(&before.listed).collect();
            ensure!(more.is_empty(), "there are more: {more:#?}");
            let (had, has) = (before.namespaces, now.namespaces);
            ensure!(has <= had, "{had} network namespaces became {has}");
            let (had, has) = (before.descriptors, now.descriptors);
            ensure!(has <= had + DESCRIPTORS_MORE_MAX, "{had} descriptors became {has}");
            ensure!(now.blanks <= BLANKS_MAX, "{} processes of blanks", now.blanks);
            Ok(Some(()))
        })
    }
}

/// A line without the numbers that change when a thing is made again; links are only counted by name.
fn nameless(line: &str) -> String {
    let link = line.split_once(": ").filter(|(number, _)| number.parse::<u32>().is_ok());
    match link.and_then(|(_, rest)| rest.split(['@', ':']).next()) {
        Some(name) => format!("link {name}"),
        None => uncounted(line),
    }
}

/// A rule of nft without what it has counted.
fn uncounted(line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        kept.push(word);
        if matches!(word, "packets" | "bytes") {
            words.next();
        }
    }
    kept.join(" ")
}

/// All files of the data directory but those of the store's own making.
fn files(dir: &Path, root: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        if name.starts_with("store.db") {
            continue;
        }
        found.insert(format!("file {name}"));
        // What an image holds is its own.
        let is_layer = name.starts_with("images/layers/");
        if !is_layer && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&path, root, found);
        }
    }
}
