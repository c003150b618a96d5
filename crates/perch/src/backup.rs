//! `perch backup FILE`: one file with what a server needs to be itself again, also while it runs.
//!
//! The store is copied as it is at one moment; then the files of the images that this copy names are opened, and only
//! when all of them are held open is anything written: the server may remove images meanwhile. If it was quicker, the
//! store is copied again. The file appears whole or not at all.
//!
//! What is not in it: volumes, which is said; what images are unpacked to, the Machines' own files (a cold start begins without them), and the key of
//! the secrets, which lies outside the data directory so that a backup alone gives nobody a secret.

pub(crate) mod archive;
mod scratch;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use perch_machine::{Digest, ImageError};

use crate::command::Place;
use crate::paths::{self, Paths};
use crate::server;
use archive::{Head, Writer};
use scratch::Scratch;

/// The packaged unit's configuration.
const CONFIG: &str = "/etc/perch/perch.toml";
/// How often the store is copied anew because an image went meanwhile. Each time, one was removed within milliseconds.
const ATTEMPTS_MAX: u32 = 5;

/// What goes into a backup, and where it goes.
#[derive(Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct Options {
    /// The file to write
    file: PathBuf,
    #[command(flatten)]
    place: Place,
    /// The server's configuration [default: /etc/perch/perch.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// With what the Machines printed
    #[arg(long)]
    logs: bool,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
}

/// Entry point of `perch backup`.
pub(crate) fn main(options: &Options) -> ExitCode {
    match backup(options) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => crate::fail(&error),
    }
}

/// A file that is to be in the backup, open.
struct Source {
    name: String,
    file: File,
}

impl Source {
    fn open(name: String, path: &Path) -> anyhow::Result<Self> {
        let file =
            File::open(path).with_context(|| format!("could not open {}", path.display()))?;
        Ok(Self { name, file })
    }
}

/// Everything that goes in, as it was at one moment.
struct Snapshot {
    schema: u32,
    store: PathBuf,
    images: Vec<Source>,
    machines: Vec<String>,
    volumes: Vec<String>,
    apps: usize,
    image_count: usize,
    broken: Vec<Digest>,
}

fn backup(options: &Options) -> anyhow::Result<String> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "perch backup must run as root: the data directory is root's"
    );
    let paths = Paths::new(options.place.data_dir.as_deref())?;
    ensure!(
        paths.store().exists(),
        "{} has no store.db, so it is no server's data directory; name it with --data-dir",
        paths.data.display()
    );
    let target = Target::new(options, &paths)?;
    server::raise_descriptor_limit();
    let written = write(options, &paths, &target);
    // Asked of the disk, because the cause may be hidden in what SQLite or tar say.
    written.map_err(|error| match is_full(&error) {
        true => error.context(format!(
            "the disk of {} is full; {} was not written",
            target.dir.display(),
            target.path.display()
        )),
        false => error,
    })
}

fn is_full(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        matches!(io, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
            || matches!(cause.downcast_ref(), Some(perch_store::OpenError::Full { .. }))
    })
}

/// Where the backup goes.
struct Target {
    path: PathBuf,
    dir: PathBuf,
}

impl Target {
    fn new(options: &Options, paths: &Paths) -> anyhow::Result<Self> {
        let path =
            std::path::absolute(&options.file).context("could not read the current directory")?;
        let dir = path.parent().with_context(|| format!("{} is a directory", path.display()))?;
        let dir =
            dir.canonicalize().with_context(|| format!("could not find {}", dir.display()))?;
        ensure!(
            !dir.starts_with(&paths.data),
            "{} is inside the data directory and would be lost with it; choose another place",
            path.display()
        );
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("could not look at {}", path.display()));
            }
            Ok(there) if !there.is_file() => bail!("{} is no regular file", path.display()),
            Ok(_) if options.force => {}
            Ok(_) => bail!("{} is there already; --force replaces it", path.display()),
        }
        Ok(Self { path, dir })
    }
}

/// Writes everything beside the target, then gives it its name.
fn write(options: &Options, paths: &Paths, target: &Target) -> anyhow::Result<String> {
    scratch::remove_leftovers(&target.dir);
    let scratch = Scratch::new(&target.dir)
        .with_context(|| format!("could not write in {}", target.dir.display()))?;
    let snapshot = snapshot(paths, scratch.path())?;
    let draft = tempfile::NamedTempFile::new_in(scratch.path())?;
    let head = Head {
        format: archive::FORMAT,
        perch: env!("CARGO_PKG_VERSION").to_owned(),
        schema: snapshot.schema,
        created_at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    };
    let mtime = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
    let mut to = Writer::begin(BufWriter::with_capacity(1 << 20, draft.as_file()), &head, mtime)?;
    fill(&mut to, options, paths, &snapshot)?;
    to.finish()?.flush().context("could not write the backup")?;
    draft.as_file().sync_all().context("could not write the backup to the disk")?;
    let bytes = draft.as_file().metadata()?.len();
    let kept = match options.force {
        true => draft.persist(&target.path),
        false => draft.persist_noclobber(&target.path),
    };
    kept.with_context(|| format!("could not make {}", target.path.display()))?;
    File::open(&target.dir)
        .and_then(|dir| dir.sync_all())
        .context("could not sync the directory")?;
    for image in &snapshot.broken {
        eprintln!(
            "warning: image {image} is not whole on this server; apps that use it cannot start"
        );
    }
    if !snapshot.volumes.is_empty() {
        eprintln!(
            "warning: what the {} volumes hold is not in it ({}); copy {} yourself, best from snapshots",
            snapshot.volumes.len(),
            snapshot.volumes.join(", "),
            paths.volumes().display()
        );
    }
    Ok(format!(
        "Wrote {}: {} apps, {} Machines, {} images, {:.1} MB",
        target.path.display(),
        snapshot.apps,
        snapshot.machines.len(),
        snapshot.image_count,
        bytes as f64 / 1e6
    ))
}

/// A store and the images that it names, at one moment.
fn snapshot(paths: &Paths, scratch: &Path) -> anyhow::Result<Snapshot> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match try_snapshot(paths, scratch) {
            // Removed by the server since the store was copied: the next copy does not name it, unless it is damage.
            Ok(found) if found.broken.is_empty() || ATTEMPTS_MAX <= attempt => return Ok(found),
            Err(error) if ATTEMPTS_MAX <= attempt || !is_absence(&error) => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
}

fn is_absence(error: &anyhow::Error) -> bool {
    let is_absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(is_absent)
            || matches!(cause.downcast_ref(), Some(ImageError::Io { source, .. }) if is_absent(source))
    })
}

fn try_snapshot(paths: &Paths, scratch: &Path) -> anyhow::Result<Snapshot> {
    let (store, read) = (scratch.join("store.db"), scratch.join("read.db"));
    for old in [&store, &read] {
        if old.exists() {
            fs::remove_file(old).context("could not remove an earlier copy")?;
        }
    }
    let schema = perch_store::snapshot(&paths.store(), &store)?;
    // Read from a copy of its own: reading migrates it.
    fs::copy(&store, &read).context("could not copy the store")?;
    let contents = server::contents(&read)?;
    let used: BTreeSet<Digest> = contents.images;
    let parts = perch_machine::images::parts(&paths.images(), &used)?;
    let open = |path: &PathBuf| {
        let name = format!("images/{}", path.display());
        Source::open(name, &paths.images().join(path))
    };
    let images = parts.files.iter().map(open).collect::<anyhow::Result<_>>()?;
    Ok(Snapshot {
        schema,
        store,
        images,
        machines: contents.machines,
        volumes: contents.volumes,
        apps: contents.apps,
        image_count: parts.images,
        broken: parts.broken,
    })
}

fn fill(
    to: &mut Writer<impl Write>,
    options: &Options,
    paths: &Paths,
    snapshot: &Snapshot,
) -> anyhow::Result<()> {
    add(to, &Source::open("store.db".to_owned(), &snapshot.store)?)?;
    if let Some(config) = config(options, paths) {
        add(to, &Source::open("perch.toml".to_owned(), &config)?)?;
    }
    for source in &snapshot.images {
        let sha256 = add(to, source)?;
        if source.name.strip_prefix("images/blobs/").is_some_and(|digest| digest != sha256) {
            eprintln!("warning: {} of the data directory is damaged", source.name);
        }
    }
    let files =
        if options.logs { &archive::MACHINE_FILES[..] } else { &archive::MACHINE_FILES[..1] };
    for id in &snapshot.machines {
        for file in files {
            let path = paths.machine(id).join(file);
            // It may not have any, or be gone since.
            let Ok(file) = File::open(&path) else { continue };
            let name = path.strip_prefix(&paths.data).unwrap_or(&path).display().to_string();
            add(to, &Source { name, file })?;
        }
    }
    Ok(())
}

fn add(to: &mut Writer<impl Write>, source: &Source) -> anyhow::Result<String> {
    let bytes = source.file.metadata().map(|meta| meta.size());
    let added = bytes.and_then(|bytes| to.add(&source.name, bytes, &source.file));
    added.with_context(|| format!("could not add {}", source.name))
}

/// What was named, else what the packaged unit gives the default server.
fn config(options: &Options, paths: &Paths) -> Option<PathBuf> {
    let usual = || {
        let is_default = paths.tag().is_none() && paths.data == Path::new(paths::DATA_DIR);
        (is_default && Path::new(CONFIG).exists()).then(|| CONFIG.into())
    };
    options.config.clone().or_else(usual)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::command::tests::parse;

    #[test]
    fn arguments_are_read_in_any_order_and_strangers_are_refused() {
        let wanted = Options {
            file: "b.tar".into(),
            place: Place { data_dir: Some("/d".into()) },
            config: Some("/c".into()),
            logs: true,
            force: true,
        };
        let words = ["backup", "--force", "b.tar", "--data-dir", "/d", "--config=/c", "--logs"];
        assert_eq!(parse(&words), Ok(Command::Backup(wanted)));
        for wrong in [&[""][..], &["a", "b"], &["a", "--data-dir"], &["a", "--quick"], &["--logs"]]
        {
            assert!(parse(&[&["backup"], wrong].concat()).is_err(), "{wrong:?}");
        }
    }
}
