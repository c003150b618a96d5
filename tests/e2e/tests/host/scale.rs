//! `fly scale`: more and fewer real Machines, while the app sleeps and while somebody deploys.

use anyhow::{Result, ensure};
use perch_testkit::Host;

use crate::stage::{SNIPPET, check_answer, on_host, private_app, wait_asleep};

fn scale(host: &Host, args: &[&str]) -> Result<perch_testkit::Output> {
    host.fly(&[&["scale"], args, &["-a", "quotes"]].concat())
}

#[test]
fn an_app_is_scaled_up_while_it_sleeps_to_nothing_and_back() {
    on_host(|host| {
        let address = private_app(host, "quotes", SNIPPET)?;
        wait_asleep(host, "quotes")?;
        let more = scale(host, &["count", "+1", "--yes"])?.ok()?;
        ensure!(more.contains("  +1 machines for group 'app' on region 'lcl'"), "{more}");
        ensure!(host.machines("quotes")?.len() == 3, "{:?}", host.machines("quotes")?);
        // The new one has nothing to do either.
        wait_asleep(host, "quotes")?;
        check_answer(&host.get(&address, 80, "/")?, "")?;
        let size = scale(host, &["memory", "512"])?.ok()?;
        ensure!(size.contains("Scaled VM Type to 'shared-cpu-1x'"), "{size}");
        let shown = scale(host, &["show", "--json"])?.json()?;
        ensure!(shown[0]["Count"] == 3 && shown[0]["Memory"] == 512, "{shown}");
        let none = scale(host, &["count", "0", "--yes"])?.ok()?;
        ensure!(none.matches("  Destroyed ").count() == 3, "{none}");
        perch_testkit::wait_until("no Machine", crate::stage::SOON, || {
            Ok(host.machines("quotes")?.is_empty().then_some(()))
        })?;
        scale(host, &["count", "1", "--yes"])?.ok()?;
        check_answer(&host.get(&address, 80, "/")?, "")
    });
}

#[test]
fn a_machine_that_somebody_else_has_leased_stops_a_scale_as_a_whole() {
    on_host(|host| {
        private_app(host, "quotes", SNIPPET)?;
        let id = host.machines("quotes")?[1].id.clone();
        let socket = host.socket().to_string_lossy().into_owned();
        let url = format!("http://perch/v1/apps/quotes/machines/{id}/lease?ttl=60");
        host.run("curl", &["-sS", "--unix-socket", &socket, "-X", "POST", &url])?
            .says(&["nonce"])?;
        let refused = scale(host, &["count", "1", "--yes"])?;
        refused.says(&["lease", "changing this app"])?;
        ensure!(!refused.status.success(), "it was done");
        ensure!(host.machines("quotes")?.len() == 2, "a Machine is gone");
        Ok(())
    });
}
