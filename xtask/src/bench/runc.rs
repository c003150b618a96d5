//! Debian's runc on the same root file system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::rootfs::Program;
use crate::shell;

/// A bundle that runc can start again and again.
pub(crate) struct Bundle {
    dir: PathBuf,
    lower: PathBuf,
    state: PathBuf,
    name: String,
}

impl Bundle {
    /// Writes the bundle: runc's own default, without a network of its own.
    pub(crate) fn new(dir: &Path, program: &Program) -> Result<Self> {
        let name = format!("perch-bench-{}-{}", program.name, std::process::id());
        let bundle = Self {
            dir: dir.join(&name),
            lower: program.root.clone(),
            state: dir.join("runc"),
            name,
        };
        fs::create_dir_all(bundle.dir.join("rootfs"))?;
        shell::output(Command::new("runc").arg("spec").current_dir(&bundle.dir))?;
        let path = bundle.dir.join("config.json");
        let mut spec: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        bundle.adapt(&mut spec, program)?;
        fs::write(&path, spec.to_string())?;
        Ok(bundle)
    }

    fn adapt(&self, spec: &mut Value, program: &Program) -> Result<()> {
        spec["process"]["args"] = json!(program.argv);
        spec["process"]["terminal"] = json!(false);
        spec["root"]["readonly"] = json!(false);
        let env = spec["process"]["env"].as_array_mut().context("no environment in the spec")?;
        env.push(json!(format!("PORT={}", program.port)));
        let namespaces = spec["linux"]["namespaces"].as_array_mut().context("no namespaces")?;
        namespaces.retain(|namespace| namespace["type"] != "network");
        Ok(())
    }

    /// Mounts a fresh overlay as root, as a Machine has at each cold start (AS-55). Not part of
    /// what is measured, but without it runc would find every name in the kernel's cache.
    pub(crate) fn refresh(&self) -> Result<()> {
        self.unmount();
        for part in ["upper", "work"] {
            let path = self.dir.join(part);
            if path.exists() {
                fs::remove_dir_all(&path)?;
            }
            fs::create_dir(&path)?;
        }
        let path = |part: &str| self.dir.join(part).display().to_string();
        let lower = self.lower.display();
        let options =
            format!("lowerdir={lower},upperdir={},workdir={}", path("upper"), path("work"));
        let root = path("rootfs");
        let args = ["-t", "overlay", "overlay", "-o", &options, &root];
        shell::output(Command::new("mount").args(args)).map(drop)
    }

    /// Nothing is mounted before the first round.
    fn unmount(&self) {
        drop(shell::output(Command::new("umount").arg(self.dir.join("rootfs"))));
    }

    fn runc(&self, args: &[&str]) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(&self.state).args(args);
        command
    }

    /// Create and start, as somebody would who has nothing else; in the caller's network.
    pub(crate) fn start(&self) -> Result<()> {
        let dir = self.dir.display().to_string();
        // runc hands its output to the container, so a pipe would never end.
        let mut create = self.runc(&["create", "--bundle", &dir, &self.name]);
        if !shell::succeeds(create.stdin(Stdio::null()).stdout(Stdio::null()))? {
            bail!("runc create failed");
        }
        shell::output(&mut self.runc(&["start", &self.name])).map(drop)
    }

    /// Kills the container and removes it.
    pub(crate) fn delete(&self) -> Result<()> {
        shell::output(&mut self.runc(&["delete", "--force", &self.name])).map(drop)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // It may be gone already.
        drop(self.delete());
        self.unmount();
    }
}
