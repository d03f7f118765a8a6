"""Rows into what people read: terminal tables; no SQL, no maths."""
