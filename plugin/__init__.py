"""The plugin for FiftyOne's App: operators, forms, brain runs, and what the App shows."""
