"""Dispatch: which effect goes to which executor, who is connected, and what their attempts do now."""
