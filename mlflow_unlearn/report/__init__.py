"""What people read: tables, descriptions, evidence."""
