//! The first command of README.

use anyhow::{Result, ensure};
use perch_testkit::{Host, Network};

use crate::stage::on;

#[test]
fn quickstart_shows_the_whole_way_and_leaves_nothing() {
    on(
        || Host::bare(Network::Open),
        |host| {
            let dir = host.dir().join("quick");
            let before = host.surroundings(&dir.join("data"))?;
            let output = host.perch(&["quickstart", "--once", "--dir", &dir.to_string_lossy()])?;
            output.says(&["fly launch", "--flycast", ".flycast", "ms"])?;
            output.ok()?;
            let after = host.surroundings(&dir.join("data"))?;
            ensure!(before == after, "before:\n{before}\nafter:\n{after}");
            ensure!(host.processes().is_empty(), "left behind: {:?}", host.processes());
            Ok(())
        },
    );
}

#[test]
fn without_root_quickstart_prints_the_sudo_line() {
    on(
        || Host::bare(Network::Open),
        |host| {
            let output = crate::bad_input::as_nobody(host, &["quickstart", "--once"])?;
            output.says(&["sudo"])?;
            ensure!(!output.status.success(), "it cannot work: {output}");
            Ok(()) as Result<()>
        },
    );
}
