//! How a Machine's files come to belong to it: by a map on the mount, or by copies with shifted owners.
//!
//! Files on disk carry the container's own ids. Where the kernel can mount an overlay of id-mapped layers (5.19, and not
//! on every file system) the mount maps them. Elsewhere each app, which has an id range of its own, gets a copy of its
//! layers whose owners lie in that range (module `shift`). Which of the two is not asked of a version number: the probe
//! prepares a root directory by the very code that starts use, in a process of its own.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use serde::{Deserialize, Serialize};

use crate::launch::{self, LaunchSpec, RootFile};
use crate::shim::chain;
use crate::stage;

/// Any range that is not the host's own; nothing outlives the probe.
const PROBE_UID_BASE: u32 = 1 << 31;
/// What the names of the probes' directories begin with.
const PROBE_PREFIX: &str = "probe-";
/// The file that the probe writes as the Machine's root.
const PROBE_FILE: &str = "/probe";

/// How files on disk come to belong to a Machine's ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ids {
    /// Files carry the Machine's ids, and its mounts map them. What a specification without the word means.
    #[default]
    Mapped,
    /// Files carry the host's ids: `uid_base` and above. Layers are copies that `ImageStore::shift` made.
    Shifted,
}

/// What the probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// The way that works here.
    pub ids: Ids,
    /// Why it is not [`Ids::Mapped`]; empty if it is.
    pub reason: String,
}

/// Tries on the file system of the directory `parent` how a Machine's root can be made, the better way first. Runs
/// `/proc/self/exe probe DIR` (see [`main`]) in a directory of its own, which is removed. Blocks for some milliseconds.
///
/// # Errors
/// When neither way works, with the reason of the second.
pub fn probe(parent: &Path) -> io::Result<Probed> {
    let Err(reason) = attempt(parent, Ids::Mapped) else {
        return Ok(Probed { ids: Ids::Mapped, reason: String::new() });
    };
    attempt(parent, Ids::Shifted)?;
    Ok(Probed { ids: Ids::Shifted, reason: reason.to_string() })
}

/// Tries one way.
///
/// # Errors
/// When it does not work here, with the step that failed.
pub fn attempt(parent: &Path, ids: Ids) -> io::Result<()> {
    clear(parent);
    let dir = parent.join(format!("{PROBE_PREFIX}{}", crate::images::random_id()?));
    fs::DirBuilder::new().mode(0o700).create(&dir)?;
    let tried = prepare(&dir, ids).and_then(|()| run_child(&dir));
    let removed = fs::remove_dir_all(&dir);
    tried.and(removed)
}

/// Removes what earlier probes left that were killed with their server.
fn clear(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(PROBE_PREFIX.as_bytes()) {
            continue;
        }
        if let Err(error) = fs::remove_dir_all(entry.path()) {
            tracing::warn!(dir = %entry.path().display(), %error, "an old probe remains until the next start");
        }
    }
}

fn prepare(dir: &Path, ids: Ids) -> io::Result<()> {
    let owner = match ids {
        Ids::Mapped => 0,
        Ids::Shifted => PROBE_UID_BASE,
    };
    for name in ["layer", "init"] {
        let layer = dir.join(name);
        fs::DirBuilder::new().mode(0o755).create(&layer)?;
        std::os::unix::fs::chown(&layer, Some(owner), Some(owner))?;
    }
    launch::write_spec(&spec(dir, ids))
}

fn spec(dir: &Path, ids: Ids) -> LaunchSpec {
    let file = RootFile { path: PROBE_FILE.to_owned(), content: Vec::new(), mode: 0o644 };
    LaunchSpec {
        machine: "probe".to_owned(),
        run: 1,
        app: String::new(),
        dir: dir.to_owned(),
        image: String::new(),
        layers: vec![dir.join("layer")],
        init_layer: dir.join("init"),
        argv: Vec::new(),
        env: Vec::new(),
        workdir: String::new(),
        user: String::new(),
        hostname: String::new(),
        private_ip: None,
        files: vec![file],
        inside: None,
        volumes: Vec::new(),
        uid_base: PROBE_UID_BASE,
        ids,
        memory_bytes: None,
        swap_bytes: None,
        cpu_millis: None,
        cpu_shares: None,
        pids_max: None,
        kill_signal: 0,
        kill_timeout_ms: 0,
        cgroup_parent: String::new(),
    }
}

fn run_child(dir: &Path) -> io::Result<()> {
    let output = Command::new("/proc/self/exe")
        .arg("probe")
        .arg(dir)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stdout);
    let words = if words.is_empty() { String::from_utf8_lossy(&output.stderr) } else { words };
    Err(io::Error::other(format!("{} ({})", words.trim(), output.status)))
}

/// Entry point of `perch probe DIR`. Call it first thing in `main`, before any thread or runtime exists. Exits with
/// success when a root directory could be made as the specification in `DIR` says; else says why on standard output.
pub fn main(dir: &Path) -> ExitCode {
    crate::shim::usual_umask();
    let Err(reason) = try_root(dir) else { return ExitCode::SUCCESS };
    if let Err(error) = io::stdout().write_all(reason.as_bytes()) {
        eprintln!("could not answer: {error}");
    }
    ExitCode::FAILURE
}

fn try_root(dir: &Path) -> Result<(), String> {
    let words = |error: io::Error| error.to_string();
    crate::sys::close_inherited().map_err(words)?;
    let spec =
        launch::require_spec(dir).map_err(|error| format!("could not read spec.json: {error}"))?;
    let user_namespace = stage::user_namespace(&spec, || ()).map_err(|error| chain(&error))?;
    stage::enter().map_err(|error| chain(&error))?;
    let root =
        stage::build(&spec, &[], user_namespace.file.as_fd()).map_err(|error| chain(&error))?;
    drop(root);
    let seen = fs::metadata(format!("{}/root{PROBE_FILE}", stage::STAGE)).map_err(words)?.uid();
    let kept = fs::metadata(on_disk(&spec)).map_err(words)?.uid();
    let wanted = match spec.ids {
        Ids::Mapped => 0,
        Ids::Shifted => spec.uid_base,
    };
    if (seen, kept) == (spec.uid_base, wanted) {
        return Ok(());
    }
    Err(format!("a new file belongs to {seen} and on disk to {kept}, not to {wanted}"))
}

fn on_disk(spec: &LaunchSpec) -> PathBuf {
    stage::upper_dir(spec).join("upper").join(PROBE_FILE.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_specification_of_an_older_server_means_mapped_ids() -> io::Result<()> {
        let mut old = serde_json::to_value(launch::test_spec())?;
        let removed = old.as_object_mut().and_then(|spec| spec.remove("ids"));
        assert!(removed.is_some());
        assert_eq!(serde_json::from_value::<LaunchSpec>(old)?.ids, Ids::Mapped);
        Ok(())
    }

    #[test]
    fn what_a_killed_probe_left_goes_with_the_next_and_nothing_else_does() -> io::Result<()> {
        let dir = crate::scratch_dir("probes")?;
        for name in ["probe-1/fs/1", "layers"] {
            fs::create_dir_all(dir.join(name))?;
        }
        clear(&dir);
        assert!(!dir.join("probe-1").exists() && dir.join("layers").exists());
        fs::remove_dir_all(dir)
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error_and_not_a_finding() {
        assert!(probe(Path::new("/nonexistent/dir")).is_err());
    }
}
