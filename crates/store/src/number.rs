//! Our numbers as SQLite's signed integers.

use rusqlite::ToSql;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef};

use super::{LeaseId, Revision};

/// Counted up by one from zero; a second per commit for 290 billion years fits.
fn to_sql(number: u64) -> rusqlite::Result<ToSqlOutput<'static>> {
    let number = i64::try_from(number)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    Ok(ToSqlOutput::from(number))
}

fn from_sql(value: ValueRef<'_>) -> FromSqlResult<u64> {
    let number = value.as_i64()?;
    u64::try_from(number).map_err(|_| FromSqlError::OutOfRange(number))
}

impl ToSql for Revision {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        to_sql(self.0)
    }
}

impl FromSql for Revision {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        from_sql(value).map(Self)
    }
}

impl ToSql for LeaseId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        to_sql(self.0)
    }
}

impl FromSql for LeaseId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        from_sql(value).map(Self)
    }
}
