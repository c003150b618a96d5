//! The plan of a deploy: from the Machines that exist and those wanted to ordered steps.
