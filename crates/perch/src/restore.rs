//! `perch restore FILE`: makes a server's data directory out of a backup.
//!
//! ```text
//!  restore.new/   the backup unpacked and checked; nothing else is touched
//!  restore.swap/  the same, while it takes the place of what was there: no server starts then
//! ```
//!
//! What was there is kept in `before-restore-TIME/`. Nothing is started: the next server finds Machines as after a reboot
//! (DESIGN 8). Images are unpacked here already, so that the first request does not wait for it.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use perch_machine::{ImageLimits, ImageStore};

use crate::backup::archive;
use crate::command::Place;
use crate::paths::Paths;
use crate::server::lock::DirLock;
use crate::server::{self, Contents};

/// Where the server's configuration goes: whether it fits this host is for its operator to say.
const CONFIG: &str = "perch.toml.from-backup";
/// Magic number of the file system of namespaces.
const NSFS: u64 = 0x6e73_6673;

/// What is restored, and where.
#[derive(Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct Options {
    /// A file that `perch backup` wrote
    file: PathBuf,
    #[command(flatten)]
    place: Place,
    /// Put the data aside that are there
    #[arg(long)]
    force: bool,
}

/// Entry point of `perch restore`.
pub(crate) fn main(options: &Options) -> ExitCode {
    match restore(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => crate::fail(&error),
    }
}

fn restore(options: &Options) -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "perch restore must run as root: the data directory is root's"
    );
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let file =
        std::path::absolute(&options.file).context("could not read the current directory")?;
    let head = archive::head(&file)?;
    let paths = Paths::new(options.place.data_dir.as_deref())?;
    let is_new = !paths.data.exists();
    let restored = restore_into(&paths, &file, options.force);
    if restored.is_err() && is_new {
        // As if nothing had been tried; whatever else came meanwhile stays.
        drop(fs::remove_file(paths.lock()));
        drop(fs::remove_dir(&paths.data));
    }
    let aside = restored?;
    println!(
        "Restored {}, made by perch {} at {}",
        paths.data.display(),
        head.perch,
        head.created_at
    );
    if let Some(aside) = aside {
        println!("What was there is in {}", aside.display());
    }
    if paths.data.join(CONFIG).exists() {
        let config = paths.data.join(CONFIG);
        println!(
            "The server's configuration is in {}; take from it what fits this host",
            config.display()
        );
    }
    println!(
        "Secrets need their key, which is in no backup; start the server with it in its place"
    );
    Ok(())
}

/// Answers where the former data are kept, if there were any.
fn restore_into(paths: &Paths, file: &Path, force: bool) -> anyhow::Result<Option<PathBuf>> {
    server::make_own(&paths.data)?;
    let _lock = DirLock::take(&paths.lock())?;
    ensure_idle(paths)?;
    let is_vacant = is_vacant(paths)?;
    ensure!(
        force || is_vacant,
        "{} has a server's data; --force puts them aside, in a directory beside the new ones",
        paths.data.display()
    );
    let stage = Stage::new(paths)?;
    ensure_room(file, &paths.data)?;
    archive::unpack(file, &stage.0)?;
    let contents = inspect(&stage.0).with_context(|| {
        format!("{} cannot be used by this release; nothing was restored", file.display())
    })?;
    unpack_images(&stage.0.join("images"), &contents)?;
    let (apps, machines) = (contents.apps, contents.machines.len());
    let aside = swap(paths, &stage.0)?;
    println!("{apps} apps, {machines} Machines");
    match aside {
        Some(empty) if is_vacant => {
            fs::remove_dir_all(&empty).context("could not remove empty directories")?;
            Ok(None)
        }
        kept => Ok(kept),
    }
}

/// Whatever still runs here would go on with files that are gone.
fn ensure_idle(paths: &Paths) -> anyhow::Result<()> {
    let remedy = || format!("end it first: perch down --data-dir {}", paths.data.display());
    let is_up = rustix::fs::statfs(paths.netns_pin()).is_ok_and(|it| it.f_type as u64 == NSFS);
    ensure!(!is_up, "the network of this directory's last server is still there; {}", remedy());
    for entry in fs::read_dir(paths.machines()).into_iter().flatten() {
        let dir = entry.context("could not list the Machines")?.path();
        ensure!(!perch_machine::lives(&dir)?, "{} still runs; {}", dir.display(), remedy());
    }
    Ok(())
}

/// Whether no server has stored anything here.
fn is_vacant(paths: &Paths) -> anyhow::Result<bool> {
    let has_machines = fs::read_dir(paths.machines()).is_ok_and(|mut all| all.next().is_some());
    Ok(!has_machines && !paths.store().exists() && !paths.restore_swap().exists())
}

/// Refuses what would fill the disk, before it does.
fn ensure_room(file: &Path, data: &Path) -> anyhow::Result<()> {
    let needed =
        fs::metadata(file).with_context(|| format!("could not look at {}", file.display()))?.len();
    let disk = rustix::fs::statvfs(data).context("could not look at the disk")?;
    let free = disk.f_bavail * disk.f_frsize;
    ensure!(
        needed < free,
        "{} needs {} MB, the disk of {} has {} MB free; nothing was restored",
        file.display(),
        needed.div_ceil(1_000_000),
        data.display(),
        free / 1_000_000
    );
    Ok(())
}

/// Where the backup is unpacked; gone with the value, unless it was renamed.
struct Stage(PathBuf);

impl Stage {
    fn new(paths: &Paths) -> anyhow::Result<Self> {
        let dir = paths.data.join("restore.new");
        if dir.exists() {
            fs::remove_dir_all(&dir).context("could not remove what an earlier restore left")?;
        }
        let made = DirBuilder::new().mode(0o700).create(&dir);
        made.with_context(|| format!("could not make {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            eprintln!("warning: could not remove {}: {error}", self.0.display());
        }
    }
}

/// Reads the store as a server would, which brings it to this release's schema.
fn inspect(stage: &Path) -> anyhow::Result<Contents> {
    ensure!(stage.join("store.db").exists(), "it has no store.db");
    let contents = server::contents(&stage.join("store.db"))?;
    for name in ["store.db.lock", archive::HEAD] {
        fs::remove_file(stage.join(name)).with_context(|| format!("could not remove {name}"))?;
    }
    for name in ["images", "machines"] {
        fs::create_dir_all(stage.join(name)).with_context(|| format!("could not make {name}"))?;
    }
    Ok(contents)
}

/// An image that cannot be unpacked here keeps only its own apps from starting.
fn unpack_images(dir: &Path, contents: &Contents) -> anyhow::Result<()> {
    let store = ImageStore::open(dir, ImageLimits::standard())?;
    for digest in &contents.machine_images {
        if let Err(error) = store.unpack(digest) {
            let error = server::chain(&error);
            eprintln!("warning: image {digest} is not unpacked: {error}");
        }
    }
    Ok(())
}

/// Puts aside what is there, and the stage in its place. A crash between the two is noticed by the next server.
fn swap(paths: &Paths, stage: &Path) -> anyhow::Result<Option<PathBuf>> {
    sync(stage)?;
    let swap = paths.restore_swap();
    if swap.exists() {
        fs::remove_dir_all(&swap).context("could not remove what an earlier restore left")?;
    }
    rename(stage, &swap)?;
    let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S.%3fZ").to_string();
    let aside = paths.data.join(format!("{}{time}", Paths::BEFORE_RESTORE));
    let former = former(paths)?;
    if !former.is_empty() {
        DirBuilder::new().mode(0o700).create(&aside).context("could not make a directory")?;
    }
    for path in &former {
        rename(path, &aside.join(path.file_name().unwrap_or_default()))?;
    }
    for entry in fs::read_dir(&swap).context("could not list what was restored")? {
        let from = entry.context("could not list what was restored")?.path();
        let name = from.file_name().unwrap_or_default();
        let name = if name == "perch.toml" { CONFIG.as_ref() } else { name };
        rename(&from, &paths.data.join(name))?;
    }
    sync(&paths.data)?;
    fs::remove_dir(&swap).context("could not remove the empty directory of the restore")?;
    sync(&paths.data)?;
    Ok((!former.is_empty()).then_some(aside))
}

/// What a server keeps, as far as it is there; not what belongs to the place.
fn former(paths: &Paths) -> anyhow::Result<Vec<PathBuf>> {
    let is_data =
        |name: &str| ["images", "machines", CONFIG].contains(&name) || name.starts_with("store.db");
    let mut found = Vec::new();
    for entry in fs::read_dir(&paths.data).context("could not list the data directory")? {
        let path = entry.context("could not list the data directory")?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(is_data) {
            found.push(path);
        }
    }
    Ok(found)
}

fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::rename(from, to)
        .with_context(|| format!("could not rename {} to {}", from.display(), to.display()))
}

/// Everything below, not only the directory.
fn sync(dir: &Path) -> anyhow::Result<()> {
    let opened = fs::File::open(dir).context("could not open a directory")?;
    rustix::fs::syncfs(&opened).context("could not write to the disk")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::command::tests::parse;

    #[test]
    fn arguments_are_read_in_any_order_and_strangers_are_refused() {
        let place = Place { data_dir: Some("/d".into()) };
        let wanted = Options { file: "b.tar".into(), place, force: true };
        let words = ["restore", "--data-dir=/d", "b.tar", "--force"];
        assert_eq!(parse(&words), Ok(Command::Restore(wanted)));
        for wrong in [&[][..], &["a", "b"], &["a", "--data-dir"], &["a", "--logs"]] {
            assert!(parse(&[&["restore"], wrong].concat()).is_err(), "{wrong:?}");
        }
    }

    /// A data directory with a stage that is ready to take its place.
    fn staged(root: &Path) -> (Paths, Stage) {
        let paths = Paths::new(Some(root)).expect("short");
        fs::create_dir_all(paths.machine("0a")).expect("made");
        fs::write(paths.store(), "former").expect("written");
        fs::write(paths.data.join("tag"), "t").expect("written");
        let stage = Stage::new(&paths).expect("made");
        fs::write(stage.0.join("store.db"), "restored").expect("written");
        fs::write(stage.0.join("perch.toml"), "# c").expect("written");
        fs::create_dir(stage.0.join("machines")).expect("made");
        (paths, stage)
    }

    #[test]
    fn what_was_there_is_kept_and_the_place_stays_itself() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let (paths, stage) = staged(root.path());
        let aside = swap(&paths, &stage.0).expect("swapped").expect("kept");
        assert_eq!(fs::read_to_string(paths.store()).expect("there"), "restored");
        assert_eq!(fs::read_to_string(aside.join("store.db")).expect("kept"), "former");
        assert!(aside.join("machines/0a").exists() && !paths.machine("0a").exists());
        assert!(paths.data.join("tag").exists() && paths.data.join(CONFIG).exists());
        assert!(!paths.restore_swap().exists());
    }

    #[test]
    fn a_stage_that_is_not_used_leaves_nothing() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let (paths, stage) = staged(root.path());
        drop(stage);
        assert_eq!(fs::read_to_string(paths.store()).expect("there"), "former");
        assert!(!paths.data.join("restore.new").exists());
    }

    #[test]
    fn an_interrupted_swap_is_no_vacant_place() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let paths = Paths::new(Some(root.path())).expect("short");
        assert!(is_vacant(&paths).expect("listed"));
        fs::create_dir(paths.restore_swap()).expect("made");
        assert!(!is_vacant(&paths).expect("listed"));
    }
}
