//! A host whose own firewall drops everything, and one that loses all its rules.

use anyhow::Result;
use perch_testkit::{Host, Network};

use crate::stage::{AWAKE, QUICK_SLEEP, SNIPPET, check_answer, on, private_app, wait_asleep};

#[test]
fn a_firewall_with_drop_policies_does_not_meet_private_apps() {
    on(
        || Host::start_with(Network::Firewalled, QUICK_SLEEP),
        |host| {
            let caller = private_app(host, "caller", AWAKE)?;
            let address = private_app(host, "quotes", SNIPPET)?;
            check_both_ways(host, &caller, &address)?;
            host.run("nft", &["flush", "ruleset"])?.ok()?;
            check_both_ways(host, &caller, &address)
        },
    );
}

/// Woken from another Machine and from the host.
fn check_both_ways(host: &Host, caller: &str, address: &str) -> Result<()> {
    wait_asleep(host, "quotes")?;
    check_answer(&host.fetch(caller, "http://quotes.flycast/")?, "Hello from")?;
    check_answer(&host.get(address, 80, "/")?, "")
}
