//! The v1 cgroups of a Machine that has no name yet: entered ahead by a process whose children inherit them.
//!
//! Version 1 lets a cgroup be renamed, and nobody waits for that. One that is empty belongs to nobody, as its keeper is
//! in it from its first moment on: whoever finds it removes it, and the kernel refuses that for all others.

use super::*;

/// Followed by who keeps it. No Machine's name begins so.
pub(crate) const PREFIX: &str = "blank-";

/// Those whose limits are set in cgroups that have to be entered.
const LIMITED: [&str; 3] = ["memory", "cpu", "pids"];

/// Cgroups that wait for a Machine. Those that have not become one's are removed when it is dropped, if nobody is inside.
#[derive(Debug)]
pub(crate) struct Unnamed(Vec<PathBuf>);

impl Cgroups {
    /// This Machine's directories in the v1 hierarchies that set limits on this host.
    fn limiting(&self) -> Vec<&Path> {
        let mut dirs: Vec<&Path> = Vec::new();
        for controller in LIMITED {
            let has = |v1: &&V1| v1.options.split(',').any(|option| option == controller);
            let Some(v1) = self.v1.iter().find(has) else { continue };
            if !dirs.contains(&v1.dir.as_path()) {
                dirs.push(&v1.dir);
            }
        }
        dirs
    }
}

impl Unnamed {
    /// Makes them below a parent. `None` where no cgroup is entered before a start: v2 has all limits, or there is no v2.
    pub(crate) fn make(parent: &str) -> io::Result<Option<Self>> {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let name = format!("{PREFIX}{own}-{}", crate::process::start_time(own)?);
        let found = Cgroups::find(&Path::new(parent).join(name))?;
        let mut made = Self(Vec::new());
        for dir in found.limiting().into_iter().filter(|_| found.v2.is_some()) {
            dir.parent().map_or(Ok(()), fs::create_dir_all).map_err(named("make", dir))?;
            fs::create_dir(dir).map_err(named("make", dir))?;
            made.0.push(dir.to_owned());
        }
        Ok((!made.0.is_empty()).then_some(made))
    }

    /// Moves the calling process into all of them. The first move waits for all processors.
    pub(crate) fn enter_oneself(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|dir| {
            write_existing(&dir.join("cgroup.procs"), "0").map_err(named("enter", dir))
        })
    }

    /// Makes them a Machine's, in place of what a former run left.
    pub(crate) fn become_those_of(&mut self, machine: &Cgroups) -> io::Result<()> {
        for dir in machine.limiting() {
            let beside = |own: &PathBuf| own.parent() == dir.parent();
            let own = self.0.iter().position(beside).ok_or_else(|| {
                io::Error::other(format!("no cgroup waits beside {}", dir.display()))
            })?;
            remove_dir(dir).map_err(named("remove", dir))?;
            fs::rename(&self.0[own], dir).map_err(named("rename a cgroup to", dir))?;
            self.0.swap_remove(own);
        }
        Ok(())
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        for dir in &self.0 {
            if let Err(error) = remove_dir(dir) {
                eprintln!("could not remove {}: {error}", dir.display());
            }
        }
    }
}

/// Removes those below a parent whose keepers are dead.
pub(crate) fn sweep(parent: &str) -> io::Result<()> {
    let found = Cgroups::find(&Path::new(parent).join(PREFIX))?;
    for parent in found.limiting().into_iter().filter_map(Path::parent) {
        let entries = match fs::read_dir(parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(named("list", parent))?,
        };
        for entry in entries {
            let entry = entry.map_err(named("list", parent))?;
            if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
                continue;
            }
            match remove_dir(&entry.path()) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                removed => removed.map_err(named("remove", &entry.path()))?,
            }
        }
    }
    Ok(())
}
