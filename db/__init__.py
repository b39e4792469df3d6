"""The database contract (`triggers.sql`) and the only code that talks SQL."""
