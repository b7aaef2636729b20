"""Which heads matter?"""
